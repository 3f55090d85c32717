"""Checks of the load balancer: its program, its policy and its configuration, by the program's own parser."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import requests

from pytest_kvcache.check import Check, Finding
from pytest_kvcache.config.balancer import MEANINGS
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.runs.ports import free_ports
from pytest_kvcache.serving.balancers import kinds
from pytest_kvcache.serving.balancers.base import Front
from pytest_kvcache.serving.balancers.version import version_of
from pytest_kvcache.serving.names import server_name

ROUTER = "vllm-router"
_LIMIT_S = 60.0
_ANSWER_S = 10.0
#: Options by which the two programs with the name `vllm-router` are told apart.
_OURS, _PRODUCTION_STACK = "--worker-urls", ("--static-backends", "--routing-logic")
#: The policies as the parser's help lists them.
_CHOICES = re.compile(r"--policy\s+\{([^}]*)\}", re.DOTALL)
#: What kv_aware needs of a router, which older ones have not.
_EVENTS = "--kv-event-source"
#: What a program's parser says where it does not mean an error of the configuration.
_NOISE = re.compile(r"^\[(NOTICE|WARNING)\]|\[(warn|notice)\]|is successful$|^\s*$")


def checks(engine: BaseEngine, profile: Profile) -> list[Check]:
    """Return the checks of a profile's balancer.

    Args:
        engine: The engine, which may have the balancer's program; else it is the machine's.
        profile: Profile that names the balancer.
    """
    return [Check("balancer", lambda: balancer(engine, profile), blocking=True)]


def balancer(engine: BaseEngine, profile: Profile) -> Finding:
    """Look at whether the balancer can be started as the profile asks for it."""
    settings = profile.balancer
    kind = kinds.KINDS[settings.kind]
    if kind.program and engine.find(kind.program) is None:
        return Finding("fail", f"{kind.program} is not on this machine", kind.install)
    if settings.kind == ROUTER:
        found = router(engine, settings.policy)
    elif settings.kind == "url":
        found = _answers(settings.url, known_ports=bool(settings.server_ports))
    elif kind.program:
        found = _parsed(engine, profile)
    else:
        found = Finding("pass", "")
    if found.status == "fail":
        return found
    words = [settings.label, version_of(settings, engine), MEANINGS[settings.promises]]
    return Finding(found.status, ": ".join(filter(None, [" ".join(filter(None, words[:2])), words[2]])), found.todo)


def router(engine: BaseEngine, policy: str = "") -> Finding:
    """Look at whose `vllm-router` is there, and whether it has the policy.

    The router of vllm-project/router takes `--worker-urls`. The router of vllm-project/production-stack, a Python
    package with the same name, takes `--static-backends` and `--routing-logic` (`parsers/parser.py`). The version
    numbers of the two overlap, so the program itself is asked.
    """
    program = engine.find(ROUTER)
    if program is None:
        return Finding("fail", f"{ROUTER} missing", "pip install 'pytest-kvcache[engine]' there")
    try:
        done = engine.call([str(program), "--help"], timeout_s=_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("fail", f"{program} --help: {error}", f"pip install --force-reinstall {ROUTER} there")
    text = done.stdout + done.stderr
    if _OURS in text:
        return _with_policy(str(program), text, policy)
    if any(flag in text for flag in _PRODUCTION_STACK):
        return Finding(
            "fail",
            f"{program} is the router of vLLM's production-stack: its options are {' and '.join(_PRODUCTION_STACK)}",
            f"pip uninstall {ROUTER} there, and pip install 'pytest-kvcache[engine]', whose {ROUTER} is that of "
            "vllm-project/router",
        )
    last = (text.strip().splitlines() or ["it says nothing"])[-1][:200]
    return Finding(
        "fail",
        f"{program} does not know {_OURS}: {last}",
        f"pip install --force-reinstall 'pytest-kvcache[engine]' there; its {ROUTER} is that of vllm-project/router",
    )


def _with_policy(program: str, text: str, policy: str) -> Finding:
    found = _CHOICES.search(text)
    known = sorted("".join(found[1].split()).split(",")) if found else []
    if policy and known and policy not in known:
        return Finding(
            "fail", f"{program} has no policy {policy!r}", f"set balancer.policy to one of {', '.join(known)}"
        )
    if policy == "kv_aware" and _EVENTS not in text:
        return Finding("fail", f"{program} has no {_EVENTS}, which kv_aware needs here", f"a newer {ROUTER} has it")
    return Finding("pass", f"{program} has {_OURS}")


def _answers(url: str, *, known_ports: bool) -> Finding:
    """Look at whether anything answers at a URL; before the servers are there it may answer with any status."""
    try:
        with requests.Session() as session:
            session.trust_env = False
            session.get(url, timeout=_ANSWER_S)
    except requests.RequestException as error:
        said = str(error.args[0] if error.args else error)[:200]
        return Finding("fail", f"{url} does not answer: {said}", "start the balancer, or correct balancer.url")
    if known_ports:
        return Finding("pass", f"{url} answers")
    return Finding(
        "warn",
        f"{url} answers, and servers get ports that are chosen anew at each boot",
        "set balancer.server_ports to the ports of the servers that the balancer knows",
    )


def _parsed(engine: BaseEngine, profile: Profile) -> Finding:
    """Have the program read the configuration that a run would write, with ports that are free now."""
    kind = kinds.KINDS[profile.balancer.kind]
    ports = iter(free_ports(profile.servers + 2))
    servers = {server_name(i): f"http://127.0.0.1:{next(ports)}" for i in range(profile.servers)}
    with tempfile.TemporaryDirectory(prefix="kvc-balancer-") as folder:
        scratch = Path(folder)
        front = Front(servers, "127.0.0.1", lambda: next(ports), scratch, engine, model=profile.served_name)
        try:
            component = kind.plan(profile.balancer, front).component
        except ConfigError as error:
            return Finding("fail", f"{error.where}: {error.what}", error.todo)
        assert component is not None  # noqa: S101 - kinds with a program have one
        for each in component.folders:
            each.mkdir(mode=0o700)
        for path, text in component.files.items():
            path.write_text(text, encoding="utf-8")
        try:
            argv = kind.check_argv(component.argv[0], component)
            done = engine.call(argv, reads=[scratch], writes=[scratch], timeout_s=_LIMIT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding("fail", f"{kind.program}: {error}", kind.install)
    if done.returncode == 0:
        return Finding("pass", f"{kind.program} takes its configuration")
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if not _NOISE.search(line)]
    where = profile.balancer.template or f"balancer.policy {profile.balancer.policy!r}"
    words = "; ".join(said[:2])[:400].replace(folder, "") or f"exit code {done.returncode}"
    return Finding("fail", f"{kind.program} refuses {where}: {words}", "docs/balancers.md lists policies and templates")

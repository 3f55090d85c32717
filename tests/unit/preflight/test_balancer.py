"""What is said of a load balancer before a boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_kvcache.config.balancer import POLICIES, Balancer
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine import environment
from pytest_kvcache.engine.environment import Engine, on_path
from pytest_kvcache.preflight import balancer as balancers
from pytest_kvcache.preflight import stopping
from pytest_kvcache.runs.ports import free_ports
from pytest_kvcache.serving.balancers.version import version_of
from tests.stubs.engine import _script, make_engine
from tests.stubs.server import stub_server
from tests.unit.balancers.make import settings
from tests.unit.test_tiers import TINY

GPU = {"python": "3.11.7", "vllm": "0.32.0", "vllm-router": "0.1.17"}
#: Of vllm-project/production-stack, as argparse begins to print it.
PRODUCTION_STACK = """usage: vllm-router [-h] [--host HOST] [--port PORT] [--service-discovery {static,k8s}]
                   [--static-backends STATIC_BACKENDS] [--static-models STATIC_MODELS]
                   [--routing-logic {roundrobin,session,kvaware,prefixaware,disaggregated_prefill,priority}]"""
#: Of vllm-router 0.1.17 and of an older one, as argparse begins to print them.
NEW = """usage: vllm-router [-h] [--host HOST] [--port PORT] [--worker-urls [WORKER_URLS ...]]
                   [--policy {random,round_robin,cache_aware,kv_aware,power_of_two,consistent_hash,sticky_least_loaded}]
                   [--kv-event-source WORKER_URL=ENDPOINT[,ENDPOINT...]]"""
OLD = """usage: vllm-router [-h] [--host HOST] [--port PORT] [--worker-urls [WORKER_URLS ...]]
                   [--policy {random,round_robin,cache_aware,power_of_two,
                   consistent_hash}]"""


def with_balancer(chosen: Balancer) -> Profile:
    """Return a profile with a balancer."""
    return TINY.model_copy(update={"balancer": chosen})


def engine_with(tmp_path: Path, name: str, script: str) -> Engine:
    """Return an engine with one program that runs a script."""
    engine = Engine(make_engine(tmp_path / "e"), GPU)
    _script(engine.path / "bin" / name, script)
    return engine


@pytest.mark.parametrize(
    ("says", "code", "status", "said"),
    [
        (PRODUCTION_STACK, 0, "fail", "production-stack: its options are --static-backends and --routing-logic"),
        ("  --worker-urls [WORKER_URLS ...]", 0, "pass", "--worker-urls"),
        ("ModuleNotFoundError: No module named 'vllm_router_rs'", 1, "fail", "No module named 'vllm_router_rs'"),
        ("", 0, "fail", "it says nothing"),
    ],
)
def test_whose_router_it_is(tmp_path: Path, says: str, code: int, status: str, said: str) -> None:
    """The program is asked for its options: two projects have one of that name, and versions do not tell them apart."""
    engine = engine_with(tmp_path, "vllm-router", f"cat <<'EOF'\n{says}\nEOF\nexit {code}")
    assert (balancers.router(engine).status, said in balancers.router(engine).found) == (status, True)
    assert bool(stopping("engine", balancers.checks(engine, TINY))) == (status == "fail")


@pytest.mark.parametrize(("text", "has"), [(NEW, set(POLICIES["vllm-router"]) - {"rendezvous_hash"}), (OLD, None)])
@pytest.mark.parametrize("policy", [*POLICIES["vllm-router"], "brand_new"])
def test_the_installed_router_must_have_the_policy(
    tmp_path: Path, text: str, has: set[str] | None, policy: str
) -> None:
    """The router's own help says which policies it has; one that it lacks is refused with those that it has."""
    known = has or {"random", "round_robin", "cache_aware", "power_of_two", "consistent_hash"}
    engine = engine_with(tmp_path, "vllm-router", f"cat <<'EOF'\n{text}\nEOF")
    found = balancers.balancer(engine, with_balancer(settings("vllm-router", policy)))
    if policy in known:
        assert found.status == "pass"
        assert found.found.startswith(f"vllm-router {policy} 0.1.17: ")
    else:
        assert found.found.endswith(f"has no policy {policy!r}")
        assert found.todo == f"set balancer.policy to one of {', '.join(sorted(known))}"


def test_kv_aware_needs_a_router_that_takes_sources(tmp_path: Path) -> None:
    """A router that has the policy and not the option for servers' events is refused."""
    engine = engine_with(tmp_path, "vllm-router", f"cat <<'EOF'\n{NEW.replace('kv-event', 'kv-other')}\nEOF")
    found = balancers.balancer(engine, with_balancer(settings("vllm-router", "kv_aware")))
    assert "has no --kv-event-source, which kv_aware needs here" in found.found


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_a_program_that_is_missing_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Without the program nothing boots, and what to install is said."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environment, "_SERVERS", str(tmp_path))
    found = balancers.balancer(Engine(make_engine(tmp_path / "e"), GPU), with_balancer(settings(kind)))
    assert (found.status, found.found) == ("fail", f"{kind} is not on this machine")
    assert found.todo.startswith("apt install ")


def test_programs_of_servers_are_found_where_path_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian has haproxy and nginx in /usr/sbin, which is not on the PATH of most users."""
    _script(tmp_path / "haproxy", "true")
    monkeypatch.setattr(environment, "_SERVERS", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    assert on_path("haproxy") == tmp_path / "haproxy"


@pytest.mark.parametrize(
    ("kind", "says", "version"),
    [
        ("haproxy", "HAProxy version 2.6.12-1+deb12u2 2025/04/26 - https://haproxy.org/", "2.6.12-1+deb12u2"),
        ("haproxy", "HA-Proxy version 2.2.9-2+deb11u7 2025/04/18", "2.2.9-2+deb11u7"),
        ("nginx", "nginx version: nginx/1.22.1", "1.22.1"),
        ("nginx", "nginx version: nginx/1.18.0 (Ubuntu)", "1.18.0"),
        ("nginx", "killed", ""),
    ],
)
def test_versions_are_read_from_what_programs_say(tmp_path: Path, kind: str, says: str, version: str) -> None:
    """HAProxy tells its version on stdout, nginx on stderr, both in words of their own."""
    engine = engine_with(tmp_path, kind, f"echo '{says}' {'>&2' if kind == 'nginx' else ''}")
    assert version_of(settings(kind), engine) == version


def test_versions_of_others_need_no_program(tmp_path: Path) -> None:
    """The router's version is that of its package; what runs elsewhere, or nowhere, has none that is known."""
    engine = Engine(tmp_path, GPU)
    assert version_of(settings("vllm-router"), engine) == "0.1.17"
    assert version_of(settings("url"), engine) == version_of(settings("none"), engine) == ""


@pytest.mark.parametrize(
    ("kind", "script", "said"),
    [
        (
            "haproxy",
            "echo '[ALERT] (9) : config : bad line' >&2; exit 1",
            "'roundrobin': [ALERT] (9) : config : bad line",
        ),
        (
            "haproxy",
            "echo '[NOTICE] (9) : path is /x' >&2; exit 3",
            "haproxy refuses balancer.policy 'roundrobin': exit",
        ),
        ("nginx", "echo 'nginx: [emerg] unknown directive' >&2; exit 1", "'round_robin': nginx: [emerg] unknown"),
    ],
)
def test_what_the_program_refuses_is_told_in_its_words(tmp_path: Path, kind: str, script: str, said: str) -> None:
    """A configuration is read by the program itself before a boot, and its first lines of error are shown."""
    found = balancers.balancer(engine_with(tmp_path, kind, script), with_balancer(settings(kind)))
    assert found.status == "fail"
    assert said in found.found


def test_a_template_that_cannot_be_read_stops_before_a_boot(tmp_path: Path) -> None:
    """The template's file is named."""
    chosen = settings("nginx", template=str(tmp_path / "gone.j2"))
    found = balancers.balancer(engine_with(tmp_path, "nginx", "true"), with_balancer(chosen))
    assert found.found == f"{tmp_path}/gone.j2: cannot be read: No such file or directory"


def test_a_balancer_that_runs_already_must_answer(tmp_path: Path) -> None:
    """Any answer will do before the servers are there; without ports that it knows it cannot find them."""
    engine = Engine(tmp_path, GPU)
    with stub_server(tmp_path) as url:
        known = settings("url", url=url, server_ports=(18001, 18002))
        assert balancers.balancer(engine, with_balancer(known)).status == "pass"
        warned = balancers.balancer(engine, with_balancer(settings("url", url=url)))
        assert (warned.status, "balancer.server_ports" in warned.todo) == ("warn", True)
    gone = f"http://127.0.0.1:{free_ports(1)[0]}"
    found = balancers.balancer(engine, with_balancer(settings("url", url=gone)))
    assert found.status == "fail"
    assert found.found.startswith(f"{gone} does not answer: ")


def test_without_a_balancer_nothing_is_asked_for(tmp_path: Path) -> None:
    """The client's own turns need no program."""
    found = balancers.balancer(Engine(tmp_path, GPU), with_balancer(settings("none")))
    assert (found.status, found.found) == ("pass", "none turns: servers take turns, so that all get as many requests")

"""Checks of the engine environment: its packages, whether they fit the profile, and whether they can be imported."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from pytest_kvcache.check import Check, Finding
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.engine.daemon import check_gpus
from pytest_kvcache.engine.image import ImageEngine
from pytest_kvcache.errors import ConfigError, SetupError
from pytest_kvcache.preflight import balancer, connector
from pytest_kvcache.serving import versions as older
from pytest_kvcache.serving.offload import Offload

_IMPORT = "import torch, vllm, lmcache"
_IMPORT_LIMIT_S = 300.0


def checks(engine: BaseEngine, profile: Profile, *, imports: bool, offloads: bool) -> list[Check]:
    """Return the checks of an engine environment.

    Args:
        engine: The environment.
        profile: Profile that the engine serves.
        imports: Whether to import vLLM and LMCache too, which takes tens of seconds.
        offloads: Whether the tier uses LMCache.
    """
    found = [
        Check("versions", lambda: versions(engine, profile, offloads=offloads)),
        Check("programs", lambda: programs(engine, profile, offloads=offloads), blocking=True),
        *balancer.checks(engine, profile),
    ]
    if isinstance(engine, ImageEngine) and profile.gpus_per_server:
        found.append(Check("GPUs of containers", lambda: gpus_of_containers(engine), blocking=True))
    if connector.needed(engine, profile, offloads=offloads):
        found.append(Check("connector", lambda: connector.installed(engine), blocking=True))
    return [*found, Check("import", lambda: importable(engine))] if imports else found


def gpus_of_containers(engine: ImageEngine) -> Finding:
    """Look at whether the daemon can give GPUs to containers."""
    try:
        check_gpus(engine.daemon, where=engine.where)
    except ConfigError as error:
        return Finding("fail", error.what, error.todo)
    return Finding("pass", str(engine.daemon))


def versions(engine: BaseEngine, profile: Profile, *, offloads: bool) -> Finding:
    """Look at which vLLM and LMCache are there, and whether vLLM is the build that the profile needs."""
    text = ", ".join(f"{name} {version}" for name, version in engine.versions.items())
    if offloads and "lmcache" not in engine.versions:
        return Finding("fail", f"no LMCache among {text}", f"pip install lmcache into {engine.where}")
    if profile.gpus_per_server and engine.is_cpu_build:
        return Finding(
            "fail",
            f"{text}: vLLM's CPU build, and profile {profile.name} is for GPUs",
            "give --kv-engine an environment with vllm, or take a profile with gpus_per_server = 0",
        )
    if not profile.gpus_per_server and not engine.is_cpu_build:
        return Finding(
            "warn",
            f"{text}: vLLM's GPU build, and profile {profile.name} is for the CPU",
            "leave --kv-engine out and run `pytest-kvcache setup`",
        )
    return Finding("pass", text)


def features(
    engine: BaseEngine, profile: Profile, offloads: Iterable[Offload | None], *, bench: bool = False
) -> Finding:
    """Look at whether vLLM and LMCache are new enough for what is used of them (`engine.floors`).

    Args:
        engine: The environment.
        profile: Profile that the engine serves.
        offloads: What each tier adds to a pair.
        bench: Whether LMCache's own benchmark of adapters will run.
    """
    meant = list(offloads)
    refused = [row for offload in meant for row in older.refusals(engine.versions, profile, offload)]
    lost = [line for offload in meant for line in older.losses(engine.versions, profile, offload, bench=bench)]
    if refused:
        missing, todo = older.missing_features(refused, engine.versions)
        return Finding("fail", missing, f"{todo} into {engine.where}")
    if lost:
        return Finding("warn", ". ".join(dict.fromkeys(lost)), "a newer vLLM or LMCache tells it: docs/versions.md")
    return Finding("pass", "vLLM and LMCache have all that is used of them")


def check_floors(engine: BaseEngine, profile: Profile, offload: Offload | None) -> None:
    """Return if the versions of an engine can serve a tier.

    Raises:
        SetupError: The versions lack what a run on the tier cannot do without.
    """
    if refused := older.refusals(engine.versions, profile, offload):
        missing, todo = older.missing_features(refused, engine.versions)
        mode = f' in lmcache_mode = "{profile.lmcache_mode}"' if offload is not None else ""
        raise SetupError(f"too old for this tier{mode}: {missing}", where=engine.where, todo=todo)


def programs(engine: BaseEngine, profile: Profile, *, offloads: bool) -> Finding:
    """Look at whether the programs that a pair is started with are there."""
    wanted: list[str] = [balancer.ROUTER] if profile.balancer.kind == balancer.ROUTER else []
    if not engine.is_cpu_build:
        wanted.append("vllm")
    if offloads and profile.lmcache_mode == "mp":
        wanted.append("lmcache")
    found = {name: engine.find(name) for name in wanted}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        return Finding(
            "fail",
            f"{', '.join(missing)} missing",
            "pip install 'pytest-kvcache[engine]' there, or `pytest-kvcache setup`",
        )
    strange = [str(path) for name, path in found.items() if not engine.owns(name)]
    if strange:
        return Finding("warn", f"not from {engine.where}: {', '.join(strange)}", "install them into it")
    return Finding("pass", ", ".join(wanted) or "vLLM alone")


def importable(engine: BaseEngine) -> Finding:
    """Look at whether vLLM and LMCache can be imported, which a wrong build of torch or a missing library prevents."""
    try:
        done = engine.call([str(engine.python), "-c", _IMPORT], timeout_s=_IMPORT_LIMIT_S)
    except subprocess.TimeoutExpired:
        return Finding("fail", f"`{_IMPORT}` took more than {_IMPORT_LIMIT_S:.0f} s", "a slow disk, or a busy machine?")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding("fail", last[:300], "`pytest-kvcache setup` repairs an environment of its own making")
    return Finding("pass", _IMPORT)

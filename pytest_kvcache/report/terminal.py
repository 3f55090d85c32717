"""The tables at the end of a session, and the words of a failed verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from pytest_kvcache.report.rows import CellReport
from pytest_kvcache.verdict.decide import Change, Verdict
from pytest_kvcache.verdict.estimate import Estimates
from pytest_kvcache.verdict.metrics import GATED

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


def measured_table(reports: Sequence[CellReport]) -> str:
    """Return the table of all cells: TTFT, ITL, throughputs, QPS asked and delivered, failures, outcome."""
    rows = []
    for report in reports:
        e = report.result.estimates
        row = {"tier": report.result.label, "context": str(report.result.context_tokens)}
        row |= {title: _format(e.get(key), form) for key, (title, form) in _COLUMNS.items()}
        row["QPS asked/sent"] = f"{e['qps_asked']:.2f}/{e['qps_delivered']:.2f}"
        row["ok/failed/unsent"] = f"{e['finished']:.0f}/{e['failed']:.0f}/{e['scheduled'] - e['sent']:.0f}"
        row["outcome"] = report.outcome
        rows.append(row)
    return pd.DataFrame(rows).to_string(index=False)


def client_table(reports: Sequence[CellReport]) -> str:
    """Return how true the client's times are: what it added itself, and TTFT as the schedule sees it."""
    rows = []
    for report in reports:
        e = report.result.estimates
        shown = ("user_late_p99_s", "send_late_p99_s", "residual_p50_s", "residual_p99_s")
        milliseconds = {key: e[key] * 1e3 for key in shown if key in e}
        rows.append(
            {
                "tier": report.result.label,
                "context": str(report.result.context_tokens),
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


def tiers_table(reports: Sequence[CellReport], *, against: str) -> str:
    """Return each tier against the tier `against` at the same context, "" where there is nothing to compare.

    The columns are those of the reference article's table: processing speed (prompt and generated tokens/s), mean
    TTFT and decode throughput per request, each as a change in percent.
    """
    yardstick = {r.result.context_tokens: r.result.estimates for r in reports if r.cell.tier == against}
    rows = []
    for report in reports:
        base = yardstick.get(report.result.context_tokens)
        if report.cell.tier == against or base is None or "ttft_mean_s" not in base:
            continue
        now = report.result.estimates
        rows.append(
            {
                "tier": report.result.label,
                "context": str(report.result.context_tokens),
                "processing speed": _percent(now, base, "tokens_per_s"),
                "mean TTFT": _percent(now, base, "ttft_mean_s"),
                "decode throughput": _percent(now, base, "decode_tokens_per_s"),
            }
        )
    return pd.DataFrame(rows).to_string(index=False) if rows else ""


def changes_table(changes: Sequence[Change]) -> str:
    """Return old, new, ratio and tolerance of every compared metric, with a mark at what is out of bounds."""
    rows = [
        {
            "metric": c.metric.label,
            "baseline": f"{c.old:.4g}",
            "now": f"{c.new:.4g}",
            "ratio": f"{c.ratio:.3f}",
            "worse by": f"{c.worse_by:+.1%}",
            "tolerance": f"{c.tolerance:.0%}",
            "": "REGRESSED" if c.regressed else "improved" if c.improved else "",
        }
        for c in changes
    ]
    return pd.DataFrame(rows).to_string(index=False)


def updates_table(reports: Sequence[CellReport]) -> str:
    """Return old → new of every cell that is written, a line a metric."""
    rows = [
        {
            "cell": str(report.cell),
            "metric": metric.label,
            "old": f"{report.stored.estimates[metric.key]:.4g}" if report.stored else "-",
            "new": f"{report.result.estimates[metric.key]:.4g}",
        }
        for report in reports
        if report.written
        for metric in GATED
    ]
    return pd.DataFrame(rows).to_string(index=False) if rows else ""


def failure(report: CellReport, verdict: Verdict, *, refresh: str, others: Sequence[str]) -> str:
    """Return the message of a test whose verdict does not succeed: what, why, where, what to do.

    Args:
        report: The cell.
        verdict: Not a success.
        refresh: The command that stores this run's figures as the baseline.
        others: Machines that have a baseline of the same cell.
    """
    where = f"{report.cell} on {report.result.label}"
    data = f"rows, counters and logs: {report.result.folder}"
    if verdict.status == "regressed":
        worst = max((c for c in verdict.changes if c.regressed), key=lambda c: c.worse_by)
        head = f"{where} regressed: {worst.metric.label} {worst.old:.4g} -> {worst.new:.4g}"
        head += f" ({worst.worse_by:+.0%} worse, tolerance {worst.tolerance:.0%})"
        parts = [head, changes_table(verdict.changes), data, f"if the new values are right: {refresh}"]
    elif verdict.status == "no-baseline":
        parts = [f"{where} has no baseline for this machine ({report.cell.machine})"]
        parts += [f"other machines have one: {', '.join(others)}"] if others else []
        parts += [f"to record one: {refresh}"]
    elif verdict.status == "incomparable":
        parts = [f"{where} is not comparable with its baseline; what differs (baseline -> now):"]
        parts += [f"  {reason}" for reason in verdict.reasons]
        parts += [f"to record a new one: {refresh}"]
    else:
        parts = [f"{where} is {verdict.status}: no verdict may rest on this run"]
        parts += [f"  {reason}" for reason in verdict.reasons]
        parts += [data]
    return "\n".join(parts)


def _format(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else form.format(value)


def _percent(now: dict[str, float], base: dict[str, float], key: str) -> str:
    return f"{now[key] / base[key] - 1:+.0%}" if key in now and key in base else "-"

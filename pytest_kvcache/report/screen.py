"""The one screen at a session's end: a row a cell, then a line for each thing that needs a person.

All other tables are in the run's `details.txt` and under `-v`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.proof.ledger import Tokens
from pytest_kvcache.report import cells
from pytest_kvcache.report.rows import status
from pytest_kvcache.verdict.gates import GateVerdict

#: Cells of a bar that shows where prompt tokens came from.
_BAR = 8
#: Narrower than this, the bar is left out, then the change and the throughputs: TTFT and verdicts stay.
_BAR_FROM, _CHANGE_FROM = 72, 60
#: Sources of prompt tokens from the fastest to the slowest, and a glyph and a letter for each.
_SOURCES = (
    ("device", "█", "D"),
    ("l1", "▓", "1"),
    ("unsplit", "▓", "1"),
    ("l2", "▒", "2"),
    ("other", "▒", "2"),
    ("computed", "░", "."),
    ("lost", "░", "."),
)
#: What an output must be able to show for the bars.
GLYPHS = "█▓▒░"
_STYLES = {
    "pass": "green",
    "improved": "green",
    "recorded": "green",
    "updated": "green",
    "regressed": "bold red",
    "invalid": "bold red",
    "refused": "red",
    "inconclusive": "yellow",
    "incomparable": "yellow",
    "no-baseline": "yellow",
}


def table(results: Sequence[CellResult], *, width: int, colour: bool, glyphs: bool) -> list[str]:
    """Return a row a cell, and below it what its signs mean.

    Columns are tier, context (tokens), TTFT p50 and p99 (s), processing speed and decode throughput per request
    (tokens/s), where prompt tokens came from, the change of the deciding gate with its interval, and the verdict.

    Args:
        results: All of the session.
        width: Of the terminal, in columns.
        colour: Whether verdicts are coloured.
        glyphs: Whether the output can show block characters; letters stand for them where not.
    """
    with_bar, with_change = width >= _BAR_FROM, width >= _CHANGE_FROM
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold" if colour else "")
    shown.add_column("tier", overflow="fold")
    for title in ("ctx", "TTFT p50", "p99 s", *(("tok/s", "dec.") if with_change else ())):
        shown.add_column(title, justify="right", no_wrap=True)
    if with_bar:
        shown.add_column("KV from", no_wrap=True)
    if with_change:
        shown.add_column("against baseline", overflow="fold", min_width=10)
    shown.add_column("verdict", overflow="fold", min_width=9)
    for result in results:
        e = result.estimates
        row = [
            Text(result.cell.tier + ("*" if _stands_in(result) else "")),
            Text(str(result.context_tokens)),
            Text(cells.seconds(e, "ttft_p50_s")),
            Text(cells.seconds(e, "ttft_p99_s")),
        ]
        if with_change:
            row += [Text(cells.whole(e, key)) for key in ("tokens_per_s", "decode_tokens_per_s")]
        if with_bar:
            row.append(Text(bar(result.runs[-1].proof.ledger.total, glyphs=glyphs)))
        found = status(result, None)
        if with_change:
            row.append(Text(cells.change(result)))
        row.append(Text(outcome(result), style=_STYLES.get(found, "")))
        shown.add_row(*row)
    lines = _render(shown, width=width, colour=colour)
    return [*lines, *_legend(results, with_bar=with_bar, with_change=with_change, glyphs=glyphs)]


def bar(tokens: Tokens, *, glyphs: bool) -> str:
    """Return where prompt tokens came from as a bar: what the device had first, what was computed last.

    Each source that has any token at all has at least one cell, so that a bar never hides one.
    """
    if not tokens.total:
        return "-"
    parts = [(getattr(tokens, name) / tokens.total, glyph if glyphs else letter) for name, glyph, letter in _SOURCES]
    merged: dict[str, float] = {}
    for part, sign in parts:
        merged[sign] = merged.get(sign, 0.0) + part
    shown = {sign: max(1, math.floor(part * _BAR)) for sign, part in merged.items() if part > 0}
    while sum(shown.values()) < _BAR:
        sign = max(shown, key=lambda each: merged[each] * _BAR - shown[each])
        shown[sign] += 1
    while sum(shown.values()) > _BAR:
        sign = max((each for each in shown if shown[each] > 1), key=lambda each: shown[each] - merged[each] * _BAR)
        shown[sign] -= 1
    return "".join(sign * count for sign, count in shown.items())


def outcome(result: CellResult) -> str:
    """Return the verdict of a cell in a word or two, with a mark where its times are doubtful."""
    return f"{cells.verdict(result)} !" if result.suspicions else cells.verdict(result)


def attention(results: Sequence[CellResult]) -> Iterator[str]:
    """Yield a line for each thing in the results that needs a person: verdicts that are none, suspicions, gates."""
    for result in results:
        where = f"{result.label}, context {result.context_tokens}"
        for line in result.suspicions:
            yield f"suspect: {where}: {line}"
        if left_out := result.runs[-1].left_out:
            yield f"left out: {where}: {left_out}"
        for each in result.gate_verdicts:
            found = status(result, each.gate)
            if found not in {"pass", "improved", "recorded", "updated"}:
                yield f"{found}: {where}: {_first(each)}"
        for wide in (moved.wide for moved in (result.making.changes if result.making else ()) if moved.wide):
            yield f"no gate will come of it: {where}: {wide}"


def _first(each: GateVerdict) -> str:
    return each.line.partition("\n")[0]


def _legend(results: Sequence[CellResult], *, with_bar: bool, with_change: bool, glyphs: bool) -> list[str]:
    signs = ("█ device  ▓ L1  ▒ L2  ░ computed") if glyphs else "D device  1 L1  2 L2  . computed"
    told = [f"KV from: {signs}"] if with_bar else []
    told += ["changes: + is worse, [at least, at most]"] if with_change else []
    lines = ["; ".join(told)] if told else []
    if any(result.suspicions for result in results):
        lines.append("! suspect: why, below")
    labels = dict.fromkeys(result.label for result in results if _stands_in(result))
    lines += [f"* {label}" for label in labels]
    return lines


def _stands_in(result: CellResult) -> bool:
    return result.label != result.cell.tier


def _render(shown: Table, *, width: int, colour: bool) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None)
    console.print(shown)
    return [line.rstrip() for line in out.getvalue().rstrip("\n").split("\n")]

"""GitHub-flavoured Markdown and Mermaid charts of what was measured; no text from elsewhere can be markup in them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from pytest_kvcache.redaction import redacted

#: What stands in a cell of a table that has no figure.
NONE = "-"
#: Besides letters and digits, what means nothing to Markdown within a line.
_PLAIN = frozenset(" ,;%/=?'+-.")
#: A line's colour in a chart, and the character that stands for it in the legend: Mermaid draws none itself.
_COLOURS = {
    "🔵": "#1f77d0", "🟠": "#e8871e", "🟢": "#3fa34d", "🟣": "#8e5bd1",
    "🔴": "#d73a49", "🟤": "#8b5a2b", "🟡": "#d4a72c", "⚫": "#57606a",
}  # fmt: skip
_BAR_CELLS = 8


def escaped(text: str) -> str:
    """Return a text in one line that Markdown and HTML show as it is, without the secrets that are known.

    Punctuation becomes numeric character references, which are never structure. Characters that nobody can see, or
    that turn the direction of writing, become their escapes.
    """
    found: list[str] = []
    line = " ".join(redacted(text).split())
    for at, character in enumerate(line):
        before = line[:at]
        if not character.isprintable():
            found.append("&#92;" + character.encode("unicode_escape", "surrogatepass").decode("ascii")[1:])
        elif character == "@":
            found.append("&#64;&#8203;")  # a name after the sign would be notified
        elif character == "." and ((before.isdigit() and line[at + 1 : at + 2] in " ") or before[-3:].lower() == "www"):
            found.append("&#46;")  # would begin a numbered list, or a link
        elif character in "+-=" and not before:
            found.append(f"&#{ord(character)};")  # would begin a list or underline a heading
        elif character.isascii() and not character.isalnum() and character not in _PLAIN:
            found.append(f"&#{ord(character)};")
        else:
            found.append(character)
    return "".join(found)


def table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the lines of a table, numbers to the right of the first column; a row may lack any column."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        return []
    lines = [_row(columns), "| :--- |" + " ---: |" * (len(columns) - 1)]
    return lines + [_row([row.get(name, NONE) for name in columns]) for row in rows]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(NONE if cell.strip() in {'', NONE} else escaped(cell) for cell in cells)} |"


def fenced(text: str, language: str = "text") -> list[str]:
    """Return the lines of a code block that nothing in the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *redacted(text).splitlines(), fence]


def bar(share: float | None) -> str:
    """Return a share from 0 to 1 as a bar with its percentage, `NONE` where it is not known."""
    if share is None or math.isnan(share):
        return NONE
    filled = round(min(1.0, max(0.0, share)) * _BAR_CELLS)
    return f"{'█' * filled}{'░' * (_BAR_CELLS - filled)} {share:.0%}"


def xychart(title: str, *, unit: str, lines: Mapping[str, Mapping[int, float]]) -> tuple[list[str], list[str]]:
    """Return a chart against the context length as the lines of a Mermaid block with its legend, and what it lacks.

    Where there is one context, its lines are bars. A line needs a value at every context: one that lacks some is left
    out, and so is every line for which there is no colour.

    Args:
        title: Of the chart.
        unit: Of the values.
        lines: A value for each context length (tokens) by the line's label.

    Returns:
        The block, empty where there is nothing to draw, and a sentence for each line that is left out.
    """
    known = {label: {at: value for at, value in line.items() if math.isfinite(value)} for label, line in lines.items()}
    contexts = sorted({at for line in known.values() for at in line})
    whole = {label: line for label, line in known.items() if len(line) == len(contexts)}
    drawn = dict(list(whole.items())[: len(_COLOURS)])
    why = {
        label: "there are more lines than colours" if label in whole else "it has no value at some contexts"
        for label in known
    }
    lacking = [f"not in the chart: {label}: {why[label]}" for label in known if label not in drawn]
    if not contexts or not drawn:
        return [], lacking
    most = max(value for line in drawn.values() for value in line.values())
    if len(contexts) == 1:
        ticks = [_quoted(label) for label in drawn]
        axis, plots = f"at a context of {contexts[0]} tokens", [("bar", [line[contexts[0]] for line in drawn.values()])]
    else:
        ticks = [_quoted(str(at)) for at in contexts]
        axis = "user context (tokens)"
        plots = [(f"line {_quoted(label)}", [line[at] for at in contexts]) for label, line in drawn.items()]
    block = [
        "```mermaid",
        "---",
        "config:",
        "  themeVariables:",
        "    xyChart:",
        f'      plotColorPalette: "{", ".join(_COLOURS.values())}"',
        "---",
        "xychart-beta",
        f"  title {_quoted(title)}",
        f"  x-axis {_quoted(axis)} [{', '.join(ticks)}]",
        f"  y-axis {_quoted(unit)} 0 --> {_number(most * 1.1 or 1.0)}",
        *(f"  {kind} [{', '.join(map(_number, values))}]" for kind, values in plots),
        "```",
    ]
    if len(contexts) > 1:
        legend = [f"{sign} {escaped(label)}" for sign, label in zip(_COLOURS, drawn, strict=False)]
        block += ["", " &nbsp; ".join(legend)]
    return block, lacking


def _quoted(text: str) -> str:
    """Return a text as Mermaid takes it between quotes: it knows no escapes, so what it might read is replaced."""
    return f'"{re.sub(r"[^A-Za-z0-9 .,()/:+-]", "_", redacted(text))[:80]}"'


def _number(value: float) -> str:
    """Return a number without an exponent, which Mermaid does not read."""
    return f"{value:.4f}".rstrip("0").rstrip(".")

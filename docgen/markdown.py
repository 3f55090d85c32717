"""Small helpers that write Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; a cell may have more than one line and may have the sign `|`."""
    lines = [_line(titles), _line(["---"] * len(titles)), *(_line(row) for row in rows)]
    return "\n".join(lines) + "\n"


def code(text: object) -> str:
    """Return text as code; "" stays "", so that an empty cell is empty."""
    return f"`{text}`" if str(text) else ""


def prose(docstring: str) -> str:
    """Return the text of a docstring as Markdown; its sections (Args, Returns) become lists."""
    out: list[str] = []
    section = ""
    for line in docstring.strip().split("\n"):
        if found := re.fullmatch(r"(Args|Returns|Raises|Yields):", line.strip()):
            section = found.group(1)
            out += [{"Args": "Arguments"}.get(section, section) + ":", ""]
        elif section and (entry := re.fullmatch(r"    (\w+): (.*)", line)):
            out.append(f"- {code(entry.group(1))}: {entry.group(2)}")
        else:
            out.append(f"  {line.strip()}" if section and line.strip() else line)
    return "\n".join(out)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")

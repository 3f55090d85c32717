"""The commands and files of README.md and of the tutorial, as a reader would type and write them.

A command is a line of a block that is indented by four spaces. A fenced block whose first line names a file is that
file. An HTML comment above a block says what is special: `<!-- not run: REASON -->` for commands that the tests cannot
run, `<!-- exits with N: REASON -->` for those that fail on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Pages whose every command is run.
PAGES = ("README.md", "docs/tutorial.md")

_COMMENT = re.compile(r"<!-- (?P<what>not run|exits with (?P<code>\d+)): (?P<reason>[^>]+?) -->")
_FILE = re.compile(r"# (?P<path>\S+\.\w+)")


@dataclass(frozen=True)
class Command:
    """A line for the shell.

    Args:
        line: As it stands on the page, with the comment behind it.
        code: The exit code that it has.
        not_run: Why the tests cannot run it; "" for one that they run.
    """

    line: str
    code: int = 0
    not_run: str = ""


@dataclass(frozen=True)
class Written:
    """A file that the page has its reader write, relative to the project."""

    path: str
    text: str


def steps(page: str) -> list[Command | Written]:
    """Return what the page has its reader do, in its order."""
    return list(_steps((ROOT / page).read_text(encoding="utf-8")))


def parsed(text: str) -> list[Command | Written]:
    """Return what a page with this text has its reader do, in its order."""
    return list(_steps(text))


def _steps(text: str) -> Iterator[Command | Written]:
    special: re.Match[str] | None = None
    fenced: list[str] | None = None
    indented, after_empty = False, True
    for line in text.split("\n"):
        if fenced is not None:
            if not line.startswith("```"):
                fenced.append(line)
                continue
            if fenced and (named := _FILE.fullmatch(fenced[0])):
                yield Written(named["path"], "\n".join(fenced[1:]) + "\n")
            fenced = None
            continue
        if line.startswith("```"):
            fenced = []
        indented = line.startswith("    ") and (indented or after_empty)
        if found := _COMMENT.fullmatch(line.strip()):
            special = found
        elif indented:
            yield _command(line.strip(), special)
        elif line.strip():  # the comment was about a block that is over
            special = None
        after_empty = not line.strip()


def _command(line: str, special: re.Match[str] | None) -> Command:
    if special is None:
        return Command(line)
    if special["code"]:
        return Command(line, code=int(special["code"]))
    return Command(line, not_run=special["reason"])

"""The file of GitHub Actions that becomes the page of a run: as much as it may hold, appended in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Of one step. The service shows nothing at all of a larger file.
MOST_BYTES = 1024 * 1024
_CUT = "More of this did not fit into the summary of a step: it is among the artefacts of the run."


@dataclass(frozen=True)
class Block:
    """Lines that stand together, with an empty line before and after.

    Args:
        lines: Of Markdown.
        cut_at: The number of lines from which on it may be cut short anywhere, such as a table below its head; None
            where half of it would mean nothing.
    """

    lines: Sequence[str]
    cut_at: int | None = None


def append(path: Path, blocks: Sequence[Block]) -> None:
    """Append blocks to the file, as far as they have room.

    Args:
        path: Of the file; it is made where only its folder is there.
        blocks: What comes first is kept first.

    Raises:
        OSError: The file cannot be written, or is no ordinary file.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no ordinary file")  # a pipe that nobody reads would never return
    there = path.stat().st_size if path.exists() else 0
    text = fitting(blocks, MOST_BYTES - there)
    with path.open("ab") as file:
        file.write(text)


def fitting(blocks: Sequence[Block], room_bytes: int) -> bytes:
    """Return blocks as they are written, as many of them and of their lines as fit; what is cut short says so."""
    found, cut = b"\n", False
    room = room_bytes - len(_encoded([_CUT])) - len(found)
    for block in blocks:
        whole = _encoded(block.lines)
        if len(whole) <= room:
            found, room = found + whole, room - len(whole)
            continue
        cut = True
        if block.cut_at is not None:
            kept, left = 0, room - len(_encoded([]))
            for line in block.lines:
                left -= len(line.encode("utf-8", "backslashreplace")) + 1
                if left < 0:
                    break
                kept += 1
            if kept > block.cut_at:
                shortened = _encoded(block.lines[:kept])
                found, room = found + shortened, room - len(shortened)
    if cut:
        found += _encoded([_CUT])
    return found if len(found) <= room_bytes else b""


def _encoded(lines: Sequence[str]) -> bytes:
    """Return a block's bytes; a character that UTF-8 cannot hold, as in the name of a file, becomes its escape."""
    return ("\n".join(lines) + "\n\n").encode("utf-8", "backslashreplace")

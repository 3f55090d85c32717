"""Find tracebacks that a process wrote in the middle of another process's traceback, or of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pytest_kvcache.serving.diagnosis.statements import TRACEBACK, LogLine, is_exception


def tracebacks_of(lines: Sequence[LogLine], ends: Collection[int]) -> set[int]:
    """Return the indices of the lines that list the calls of some exceptions.

    Args:
        lines: Lines of a log.
        ends: Indices of the lines of these exceptions.
    """
    found: set[int] = set()
    opened: dict[str, list[list[int]]] = {}
    for at, line in enumerate(lines):
        stack = opened.setdefault(line.speaker, [])
        if line.text.startswith(TRACEBACK):
            stack.append([at])
        elif line.is_frame:
            for each in stack[-1:]:
                each.append(at)
        elif at in ends:
            # A single open traceback may belong to a later exception; this one then has no traceback.
            if is_exception(line.text) and stack and (len(stack) > 1 or not _goes_on(lines, ends, at)):
                found.update(stack.pop())
        elif line.text.strip():
            stack.clear()
    return found


def _goes_on(lines: Sequence[LogLine], ends: Collection[int], end: int) -> bool:
    """Whether the process continues, after line `end`, a traceback that it began before that line."""
    another = False
    for at in range(end + 1, len(lines)):
        line = lines[at]
        if line.speaker != lines[end].speaker or not line.text.strip():
            continue
        if at in ends:
            another = False
        elif line.text.startswith(TRACEBACK):
            another = True
        elif not another or not line.is_frame:
            return not another and (line.is_frame or is_exception(line.text))
    return False

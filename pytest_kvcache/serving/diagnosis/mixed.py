"""Tracebacks that one process wrote into another's, or into its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pytest_kvcache.serving.diagnosis.statements import TRACEBACK, LogLine, is_exception


def tracebacks_of(lines: Sequence[LogLine], ends: Collection[int]) -> set[int]:
    """Return where the lines are that list the calls of some exceptions.

    Args:
        lines: Of a log.
        ends: Where the exceptions are.
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
            # One alone may be that of the exception behind this one, which has then none of its own.
            if is_exception(line.text) and stack and (len(stack) > 1 or not _goes_on(lines, ends, at)):
                found.update(stack.pop())
        elif line.text.strip():
            stack.clear()
    return found


def _goes_on(lines: Sequence[LogLine], ends: Collection[int], end: int) -> bool:
    """Whether the process goes on behind `end` with a traceback that it has begun before."""
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

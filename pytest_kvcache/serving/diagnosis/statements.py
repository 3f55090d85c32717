"""Read a component's log as statements of its processes: exceptions with what led to them, and messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# "(EngineCore pid=12) ", "(VllmWorker rank=3 pid=15) ", "(RayWorker pid=5, ip=10.0.0.1) ", "[rank0]: ".
_SPEAKER = re.compile(r"^(?:\[rank\d+\]:\s?)?(?:\([^()]*\bpid=\d+[^()]*\)\s?)?(?:\[rank\d+\]:\s?)?")
# "ERROR 11-24 04:25:32 [core.py:1510] " of vLLM, "ERROR 04-26 01:59:07 worker_base.py:157] " of older ones.
_VLLM = re.compile(r"^(?P<level>[A-Z]{4,8})\s+[\d-]+\s[\d:.]+\s+(?P<source>\[?[\w./<>-]+:\d+\]\s?)?")
# "[2026-11-24 04:23:11,138] LMCache ERROR: … (fs_connector.py:376:lmcache.v1.…)".
_LMCACHE = re.compile(r"^\[[\d-]+ [\d:,]+\]\s+LMCache\s+(?P<level>[A-Z]{4,8}):\s*")
_WHERE = re.compile(r"\s*\([\w./-]+\.py:\d+(?::[\w.]+)?\)$")
# "ERROR:    …" of uvicorn, "2026/11/24 04:39:16 NOTICE: …" of rclone, "2026-11-24T04:39:16Z  INFO …" of the router.
_OTHER = re.compile(
    r"^(?:[\dT:/., -]+Z?\s+)?(?:\S+:\d+:\d+ \[\d+\]\s)?\s*(?P<level>NCCL INFO|INFO|DEBUG|TRACE|WARNING|WARN|ERROR)\b"
)
#: Levels of messages that state no failure.
CALM = frozenset({"DEBUG", "TRACE", "INFO", "NCCL INFO", "WARNING", "WARN"})

_EXCEPTION = re.compile(
    r"^(?:\w+\.)+[A-Z]\w*(?::|$)|"
    r"^(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Refused|Expired|Terminated|Warning)\b(?::| -|$)"
)
_CHAIN = re.compile(r"^(?:During handling of the above exception|The above exception was the direct cause)")
TRACEBACK = "Traceback (most recent call last)"
#: Most lines of one message; the longest of vLLM and NCCL have six.
_MOST_LINES = 10

Kind = Literal["exception", "message"]


@dataclass(frozen=True)
class LogLine:
    """One line of a log, without what a logger puts before the text.

    Args:
        text: Text of the line.
        speaker: Process that wrote the line, as the log names it; "" where the log does not.
        level: Level that the logger gives, "" where there is none.
        source: File and line that called the logger, "" where the log does not say.
        lmcache: Whether LMCache's logger wrote it.
    """

    text: str
    speaker: str = ""
    level: str = ""
    source: str = ""
    lmcache: bool = False

    @property
    def calm(self) -> bool:
        """Whether the level means that there is no failure. A warning of LMCache may tell of a store that failed."""
        return self.level in CALM and not (self.lmcache and self.level == "WARNING")

    @property
    def is_frame(self) -> bool:
        """Whether the line is part of a traceback's list of calls."""
        bare = self.text.strip()
        return self.text.startswith(('  File "', "    ")) or (bool(bare) and not bare.strip("^~ "))


@dataclass(frozen=True)
class Statement:
    """An exception or a message.

    Args:
        kind: Whether it is an exception or a message.
        lines: First line, and the lines that continue it.
        context: What led to an exception: the calls, and the message above them.
        level: Level that the logger gives, "" where there is none.
    """

    kind: Kind
    lines: tuple[str, ...]
    context: str = ""
    level: str = ""

    @property
    def text(self) -> str:
        """All lines as one text."""
        return "\n".join(self.lines)


@dataclass
class _Open:
    """The statement that one process has begun and not ended."""

    context: list[str] = field(default_factory=list)
    header: str = ""
    chained: bool = False
    statement: list[str] | None = None
    at: int = 0
    level: str = ""
    source: str = ""

    def goes_on_with(self, line: LogLine) -> bool:
        """Whether `line` continues the message of the exception that was read last."""
        if self.statement is None or len(self.statement) >= _MOST_LINES:
            return False
        return not line.lmcache and line.source == self.source


def read(log: str) -> list[LogLine]:
    """Return the lines of a log."""
    return [_line(raw) for raw in log.splitlines()]


def statements(lines: Sequence[LogLine]) -> list[Statement]:
    """Return the statements in the order of their first lines; the lines of each process are read separately.

    Lines with a calm level are left out, since they mention memory or keys where nothing failed.
    """
    found: list[tuple[int, Statement]] = []
    speakers: dict[str, _Open] = {}
    for at, line in enumerate(lines):
        now = speakers.setdefault(line.speaker, _Open())
        found += _take(now, at, line)
    for now in speakers.values():
        found += _close(now)
    return [statement for _, statement in sorted(found, key=lambda each: each[0])]


def _take(now: _Open, at: int, line: LogLine) -> Iterator[tuple[int, Statement]]:
    text = line.text
    if line.calm:
        yield from _close(now)
        now.context, now.header = [], ""
    elif _CHAIN.match(text):
        yield from _close(now)
        now.chained = True
    elif text.startswith(TRACEBACK):
        yield from _close(now)
        now.context = now.context if now.chained else [now.header]
        now.chained = False
    elif is_exception(text):
        yield from _close(now)
        now.statement, now.at, now.level, now.source = [text], at, line.level, line.source
    elif now.statement is not None and now.goes_on_with(line):
        now.statement.append(text)
    elif line.is_frame:
        now.context.append(text)
    elif text.strip():
        yield from _close(now)
        now.header = text
        yield at, Statement("message", (text,), level=line.level)


def _close(now: _Open) -> Iterator[tuple[int, Statement]]:
    if now.statement is not None:
        lines = tuple(text for text in now.statement if text.strip())
        yield now.at, Statement("exception", lines, "\n".join(now.context), now.level)
    now.statement = None


def is_exception(text: str) -> bool:
    """Whether a line is the last one of a traceback: an exception's class and what it says."""
    return bool(_EXCEPTION.match(text))


def _line(raw: str) -> LogLine:
    plain = _ANSI.sub("", raw.rstrip())
    speaker = _SPEAKER.match(plain)
    prefix = speaker.group() if speaker else ""
    rest = plain[len(prefix) :]
    prefix = prefix.strip()
    if found := _LMCACHE.match(rest):
        return LogLine(_WHERE.sub("", rest[found.end() :]), prefix, found["level"], lmcache=True)
    if found := _VLLM.match(rest):
        return LogLine(rest[found.end() :], prefix, found["level"], (found["source"] or "").strip())
    found = _OTHER.match(rest)
    return LogLine(rest, prefix, found["level"] if found else "")

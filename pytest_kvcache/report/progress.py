"""Live progress of a session: one line that changes on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pytest_kvcache.campaign.progress import Progress, Silent
from pytest_kvcache.showable import showable

#: Between two lines of one phase in a log, and between two changes of the line on a terminal (s).
_CALM_S, _LIVE_S = 30.0, 0.25


def chosen(stream: TextIO | None, say: Callable[[str], None], *, verbosity: int, total_s: float) -> Progress:
    """Return how progress is shown: live on a terminal, in calm lines elsewhere, not at all under -q.

    Args:
        stream: pytest's terminal, None without one (`-p no:terminal`).
        say: Writes a line.
        verbosity: Of pytest.
        total_s: What the session is expected to take.
    """
    if stream is None or verbosity < 0:
        return Silent()
    if is_live(stream):
        return LiveProgress(stream, total_s=total_s)
    return CalmProgress(say, total_s=total_s)


def is_live(stream: TextIO) -> bool:
    """Whether a line that changes can be shown: on a terminal, and not in CI, whose logs keep everything."""
    return stream.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


class _Told:
    """The words of progress, with what is left of the session's time."""

    def __init__(self, total_s: float) -> None:
        self._began_s = time.monotonic()
        self._total_s = total_s
        self.where = ""

    def left(self) -> str:
        minutes = (self._total_s - (time.monotonic() - self._began_s)) / 60
        return f"about {minutes:.0f} min left" if minutes >= 1 else "a minute or more left"

    def line(self, what: str, *, width: int | None = None) -> str:
        """Return what goes on between where and the time that is left, cut where the line would be wider."""
        begin, end = f"{self.where}: ", f"; {self.left()}"
        room = len(what) if width is None else width - len(begin) - len(end)
        return begin + (what if len(what) <= room else what[: max(0, room - 3)] + "...") + end


class CalmProgress:
    """A line for each phase, and one every half minute in a load: for logs.

    Args:
        say: Writes a line.
        total_s: What the session is expected to take.
    """

    def __init__(self, say: Callable[[str], None], *, total_s: float) -> None:
        self._line = CalmLine(say)
        self._told = _Told(total_s)

    def phase(self, where: str, what: str) -> None:
        """Write it down."""
        self._told.where = where
        self._line.show(self._told.line(what), at_once=True)

    def waiting(self, names: Sequence[str]) -> None:
        """Write them down now and then."""
        self._line.show(self._told.line(f"waiting for {', '.join(names)}"))

    def load(self, line: str) -> None:
        """Write it down now and then."""
        self._line.show(self._told.line(line))

    def rest(self) -> None:
        """Do nothing: a log keeps its lines."""


class LiveProgress:
    """One line on a terminal that changes; whatever else is written takes it away first (`rest`).

    Nothing runs in the background: a thread that draws would share the processors with the load.

    Args:
        stream: The terminal.
        total_s: What the session is expected to take.
    """

    def __init__(self, stream: TextIO, *, total_s: float) -> None:
        self._stream = stream
        self._console = Console(file=stream, highlight=False)
        self._told = _Told(total_s)
        self._what = ""
        self._drawn_s = 0.0
        self._live: Live | None = None

    def phase(self, where: str, what: str) -> None:
        """Show it."""
        self._told.where, self._what = where, what
        self._show(what, at_once=True)

    def waiting(self, names: Sequence[str]) -> None:
        """Show them behind the phase."""
        self._show(f"{self._what}: waiting for {', '.join(names)}")

    def load(self, line: str) -> None:
        """Show it in place of the phase."""
        self._show(line)

    def rest(self) -> None:
        """Take the line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, what: str, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now - self._drawn_s < _LIVE_S:
            return
        self._drawn_s = now
        with contextlib.suppress(OSError):  # Rich asks for the size of descriptors that pytest captures
            self._console.width = os.get_terminal_size(self._stream.fileno()).columns or self._console.width
        text = Text(
            showable(self._told.line(what, width=self._console.width), self._stream),
            style="dim",
            no_wrap=True,
            overflow="ellipsis",
        )
        if self._live is None:
            self._stream.write("\n")
            self._live = Live(text, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()
        self._live.update(text, refresh=True)


@contextlib.contextmanager
def shown(say: Callable[[str], None]) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """Yield a way to say a line for good, and one to show what goes on until the next line.

    On a terminal the latter is one line that changes; elsewhere a line at most every half minute.

    Args:
        say: Writes a line.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        calm = CalmLine(say)
        yield say, calm.show
        return
    console = Console(highlight=False)
    with console.status("", spinner="line") as status:

        def lasting(line: str) -> None:
            status.update("")
            say(line)

        yield lasting, lambda line: status.update(Text(showable(line, sys.stdout), no_wrap=True, overflow="ellipsis"))


class CalmLine:
    """Writes what goes on down, at most every half minute.

    Args:
        say: Writes a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last_s = time.monotonic()

    def show(self, line: str, *, at_once: bool = False) -> None:
        """Write the line down where the last one is old enough, or at once."""
        if at_once or time.monotonic() - self._last_s >= _CALM_S:
            self._last_s = time.monotonic()
            self._say(line)

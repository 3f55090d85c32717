"""One step of a bisect: a session of pytest that holds a release against the good one, and what its JUnit file says."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from xml.etree import ElementTree

from pytest_kvcache.errors import RunError
from pytest_kvcache.history.halving import Outcome
from pytest_kvcache.runs import signals

#: Exit codes of sessions that came to their verdicts: all tests passed, or some failed.
_TO_THE_END = (0, 1)
_WITH_MESSAGE = ("failure", "error", "skipped")
#: Gates that do not compare the two sides: absolute bounds, and gains of a tier over another.
_NOT_COMPARED = ("limit-", "gain-")


@dataclass(frozen=True)
class Judged:
    """What the JUnit file says of one test.

    Args:
        test: Its name.
        verdict: Of `kv_verdict`, "" where the test came to none.
        context_tokens: Length of the user context, "" where not told.
        metric: Short name of the gate, "" of a whole cell.
        worse_by: Estimate of the change, as a share; None where nothing was compared.
        interval: Its interval, as shares; None likewise.
        message: Of a failure, an error or a skip, in one line.
        failed: Whether the test failed, or an error kept it from running.
    """

    test: str
    verdict: str
    context_tokens: str = ""
    metric: str = ""
    worse_by: float | None = None
    interval: tuple[float, float] | None = None
    message: str = ""
    failed: bool = False

    @property
    def line(self) -> str:
        """Test, change and interval in one line."""
        change = "" if self.worse_by is None else f" by {self.worse_by:+.1%}"
        change += "" if self.interval is None else f" [{self.interval[0]:+.1%}, {self.interval[1]:+.1%}]"
        return f"{self.test}: {self.verdict or 'no verdict'}{change}"


def measure(argv: Sequence[str], junit: Path) -> list[Judged]:
    """Run a session to its end and return what it says of each test; its output goes to the terminal.

    An interruption is passed on to the session once, which ends its servers, and is raised after its end.

    Args:
        argv: The session's command, which writes `junit`.
        junit: Path of the JUnit file.

    Raises:
        RunError: The session ended before it came to verdicts, by a wrong option for instance.
        KeyboardInterrupt: The session was interrupted.
    """
    junit.parent.mkdir(parents=True, exist_ok=True)
    junit.unlink(missing_ok=True)
    code, interrupted = _run(argv)
    if interrupted:
        raise KeyboardInterrupt
    if code not in _TO_THE_END or not junit.is_file():
        raise RunError(
            f"pytest exited with {code} before it came to verdicts (above it says why)",
            where="bisect",
            todo="repair the cause, then run the same command: it goes on where it was",
        )
    return read(junit)


def _run(argv: Sequence[str]) -> tuple[int, bool]:
    """Return the exit code of a program, and whether a signal came meanwhile, the first of which was passed on."""
    caught: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if started and len(caught) == 1:
            started[0].send_signal(number)

    restore = signals.handle((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), pass_on)
    try:
        # A session of its own, so that Ctrl-C at the terminal reaches it once: a second one would cut its clean-up
        # short.
        started.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True))
        if caught:  # while it was started
            started[0].send_signal(caught[0])
        return started[0].wait(), bool(caught)
    finally:
        restore()


def read(junit: Path) -> list[Judged]:
    """Return what a JUnit file of pytest says of each test.

    Raises:
        RunError: The file is damaged.
    """
    try:
        cases = list(ElementTree.parse(junit).getroot().iter("testcase"))  # noqa: S314 - our own session wrote it
        return [_judged(case) for case in cases]
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise RunError(f"the JUnit file cannot be read: {error}", where=str(junit)) from None


def _judged(case: ElementTree.Element) -> Judged:
    found = {each.get("name", ""): each.get("value", "") for each in case.iter("property")}
    ends = [found[key] for key in ("kv_interval_low", "kv_interval_high") if key in found]
    ended = next((each for each in case if each.tag in _WITH_MESSAGE), None)
    told = "" if ended is None else ended.get("message") or ended.text or ""
    return Judged(
        case.get("name", ""),
        found.get("kv_verdict", ""),
        context_tokens=found.get("kv_context_tokens", ""),
        metric=found.get("kv_metric", ""),
        worse_by=float(found["kv_worse_by"]) if "kv_worse_by" in found else None,
        interval=(float(ends[0]), float(ends[1])) if len(ends) == 2 else None,
        message=" ".join(told.split())[:300],
        failed=ended is not None and ended.tag != "skipped",
    )


def decide(judged: Sequence[Judged], *, context_tokens: int | None, metric: str) -> tuple[Outcome, str]:
    """Return what a step has shown, and the line that says why.

    A release is bad where a gate that is looked at has regressed, and good where all of them have passed.

    Args:
        judged: Of all tests of the session.
        context_tokens: The context that is looked at; None for all.
        metric: Short name of the gate that is looked at; "" for all that compare two sides.
    """
    asked = [
        each
        for each in judged
        if each.verdict
        and (context_tokens is None or each.context_tokens == str(context_tokens))
        and (each.metric == metric if metric else not each.metric.startswith(_NOT_COMPARED))
    ]
    if bad := [each for each in asked if each.verdict == "regressed"]:
        return "bad", max(bad, key=_effect).line
    good = [each for each in asked if each.verdict in {"pass", "improved"}]
    # A test that came to no verdict does not say which gate it is of: it may be one that is looked at.
    failed = [each for each in judged if each.failed and not each.verdict]
    if untold := [each for each in asked if each not in good] + failed:
        return "skipped", untold[0].line + (f": {untold[0].message}" if untold[0].message else "")
    if good:
        return "good", max(good, key=_effect).line
    known = sorted({f"{each.metric or 'a cell'} at {each.context_tokens}" for each in judged if each.verdict})
    passed_over = next((f": {each.message}" for each in judged if each.message), "")
    return "skipped", "no such gate was judged" + (f"; there are {', '.join(known)}" if known else passed_over)


def _effect(judged: Judged) -> float:
    return float("-inf") if judged.worse_by is None else judged.worse_by

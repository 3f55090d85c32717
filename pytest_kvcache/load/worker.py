"""The load process: `python -m pytest_kvcache.load.worker PLAN.json`.

Load is generated outside pytest's process, so that nothing in there delays a stamp. This process prepares the script,
warms up, primes, and starts as many children as the rate needs, each with a share of the users. SIGTERM or SIGINT ends
the run early and keeps what was measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytest_kvcache.client.wire import Wire
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.load import records
from pytest_kvcache.load.driver import Driver, Encoder, Progress
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.runs.files import write_json
from pytest_kvcache.telemetry.prometheus import scrape_all
from pytest_kvcache.workload.script import Conversation, Script, Turn
from pytest_kvcache.workload.tokens import ServedTokenizer

#: Time for children to start and to put the first requests together before the clock starts (s).
_LEAD_S = 0.5
#: Said when all that comes before the measured requests is done.
CLOCK_STARTS = "the clock starts"
#: What a child is given to hand over its rows after the run was stopped (s).
_SAVE_S = 5.0
_TICK_S = 0.5
_PR_SET_PDEATHSIG = 1
_ROUNDING_S = 1e-9
#: A run that warms up badly is not started; so many failures are listed.
_LISTED = 3


@dataclass
class Outcome:
    """What a run brought.

    Args:
        rows: One a request that the schedule asked for, also those that were never sent.
        started_at: Wall clock at the start (s since the epoch).
        elapsed_s: From the start to the last answer.
        warmup_errors: What went wrong before the start.
        lost_workers: How load processes ended that handed nothing over.
        interrupted: Whether it was ended early.
        workers: Number of load processes.
        stopped_after_rounds: Whole rounds after which they said enough, and which rows have; None where all were sent.
        beyond_tokens: Prompt tokens of requests that were sent after those rounds.
        counters_before: By component, read when the clock was about to start.
        counters_after: By component, read after the last answer.
    """

    rows: list[RequestRecord] = field(default_factory=list)
    started_at: float = 0.0
    elapsed_s: float = 0.0
    warmup_errors: list[str] = field(default_factory=list)
    lost_workers: list[str] = field(default_factory=list)
    interrupted: bool = False
    workers: int = 0
    stopped_after_rounds: int | None = None
    beyond_tokens: int = 0
    counters_before: dict[str, dict[str, float]] = field(default_factory=dict)
    counters_after: dict[str, dict[str, float]] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """All but the rows."""
        return {key: value for key, value in asdict(self).items() if key != "rows"}


def main() -> int:
    """Read the plan, run it, write rows and facts."""
    plan = LoadPlan.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        carry_out(plan, lambda line: print(line, flush=True))
    except KvCacheError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def carry_out(plan: LoadPlan, say: Callable[[str], None]) -> Outcome:
    """Run `plan`, write its files, and return what it brought. SIGINT and SIGTERM end it early.

    Raises:
        RunError: The workload does not fit the server.
    """
    outcome = Outcome()
    with _Stop() as stop:
        key = os.environ.get(plan.api_key_env, "") if plan.api_key_env else ""
        script = _script(plan, key)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        encoder = Encoder(plan, headers)
        encoder.prepare(_all_turns(script))
        outcome.warmup_errors = _before_the_clock(plan, script, encoder, stop)
        outcome.counters_before = scrape_all(plan.metrics_urls)
        count = outcome.workers = plan.workload.worker_count(script)
        start_s = time.monotonic() + _LEAD_S
        outcome.started_at = time.time() + _LEAD_S
        say(f"{CLOCK_STARTS}: {len(script.conversations)} conversations, {count} load processes")
        children = _Children(
            [_Share(plan, script.conversations[i::count], encoder, script.user_header, start_s) for i in range(count)],
            say,
        )
        stop.on(children.stop)
        children.listen()
        outcome.rows, outcome.lost_workers = children.rows, children.lost
        outcome.stopped_after_rounds, outcome.beyond_tokens = children.stopped_after_rounds, children.beyond_tokens
        outcome.elapsed_s = time.monotonic() - start_s
        outcome.counters_after = scrape_all(plan.metrics_urls)
        outcome.interrupted = stop.asked
        records.save(records.to_frame(outcome.rows), plan.rows)
        write_json(plan.summary, outcome.facts())
    return outcome


def _script(plan: LoadPlan, key: str) -> Script:
    tokenizer = None
    if plan.workload.needs_tokenizer:
        tokenizer = ServedTokenizer(plan.tokenizer_url, plan.model, api_key=key)
    return plan.workload.script(plan.context_tokens, tokenizer, first_user=plan.first_user)


def _all_turns(script: Script) -> Iterator[Turn]:
    yield from script.warm_up
    yield from script.priming
    for user in script.conversations:
        yield from user.turns


def _before_the_clock(plan: LoadPlan, script: Script, encoder: Encoder, stop: _Stop) -> list[str]:
    with _connected(plan) as wire:
        stop.on(wire.stop)
        driver = Driver(plan, encoder, wire, user_header=False)
        rows = [*driver.at_once(script.warm_up), *driver.one_by_one(script.priming)]
    errors = [f"{row.status}: {row.error}" for row in rows if row.status != records.OK]
    more = len(errors) - _LISTED
    return [*errors[:_LISTED], *([f"and {more} more"] if more > 0 else [])]


@contextlib.contextmanager
def _connected(plan: LoadPlan) -> Iterator[Wire]:
    url = urlsplit(plan.base_url)
    secure = url.scheme == "https"
    tls = ssl.create_default_context() if secure else None
    wire = Wire(url.hostname or "", url.port or (443 if secure else 80), tls)
    try:
        yield wire
    finally:
        wire.close()


class _Stop:
    """Turns SIGINT and SIGTERM into a call of what is to be stopped just now."""

    def __init__(self) -> None:
        self.asked = False
        self._action: Callable[[], None] = lambda: None
        self._before: dict[int, Any] = {}

    def on(self, action: Callable[[], None]) -> None:
        """Have `action` called from now on, at once where a signal came already."""
        self._action = action
        if self.asked:
            action()

    def __enter__(self) -> _Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, _number: int, _frame: object) -> None:
        self.asked = True
        self._action()


@dataclass(frozen=True)
class _Share:
    """What one child sends.

    Args:
        plan: What limits apply.
        conversations: Its own.
        encoder: Has all texts already.
        user_header: Whether requests name their user.
        start_s: When the clock starts (CLOCK_MONOTONIC).
    """

    plan: LoadPlan
    conversations: tuple[Conversation, ...]
    encoder: Encoder
    user_header: bool
    start_s: float


@dataclass(frozen=True)
class _Told:
    """What a child says once a second.

    Args:
        progress: So far.
        ended: Rows that have ended since the last time, where the parent may stop the run early.
        all_ended_until_s: All of its requests that were to start before this have ended.
    """

    progress: Progress
    ended: list[RequestRecord]
    all_ended_until_s: float


class _Children:
    """The processes that send, and what they say.

    Args:
        shares: One for each.
        say: Prints a line.
    """

    def __init__(self, shares: list[_Share], say: Callable[[str], None]) -> None:
        self._say = say
        self._plan, self._start_s = shares[0].plan, shares[0].start_s
        self._progress: dict[int, Progress] = {}
        self._ends: dict[Connection, int] = {}
        self._give_up_s: float | None = None
        self._ended: list[RequestRecord] = []
        self._all_ended_until_s: dict[int, float] = dict.fromkeys(range(len(shares)), 0.0)
        self._looked_at = 0
        self.rows: list[RequestRecord] = []
        self.lost: list[str] = []
        self.stopped_after_rounds: int | None = None
        self.beyond_tokens = 0
        # Forked, so that all prompts are there and none is copied.
        context = multiprocessing.get_context("fork")
        self._processes = []
        for number, share in enumerate(shares):
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_work, args=(share, theirs), name=f"load-{number}", daemon=True)
            child.start()
            theirs.close()
            self._processes.append(child)
            self._ends[ours] = number

    def stop(self) -> None:
        """Have them hand over what they have."""
        self._give_up_s = time.monotonic() + _SAVE_S
        for child in self._processes:
            child.terminate()

    def listen(self) -> None:
        """Return when each has handed over its rows, or has ended without."""
        next_report_s = self._start_s + self._plan.report_s
        while self._ends:
            for end in wait(list(self._ends), timeout=_TICK_S):
                assert isinstance(end, Connection)  # noqa: S101 - for the type checker: `wait` takes other things too
                self._hear(end)
            self._stop_if_enough()
            now = time.monotonic()
            if now >= next_report_s:
                next_report_s += self._plan.report_s
                self._report(now - self._start_s)
            if self._give_up_s is not None and now > self._give_up_s:
                for child in self._processes:
                    child.kill()
        for child in self._processes:
            child.join(_SAVE_S)
        if self.stopped_after_rounds is not None and self._plan.stop is not None:
            end_s = self.stopped_after_rounds * self._plan.stop.round_s
            cut = [row for row in self.rows if row.intended_start_s >= end_s - _ROUNDING_S]
            self.rows = [row for row in self.rows if row.intended_start_s < end_s - _ROUNDING_S]
            sent = [row for row in cut if row.actual_start_s is not None]
            self.beyond_tokens = sum(row.prompt_tokens or row.intended_prompt_tokens or 0 for row in sent)

    def _stop_if_enough(self) -> None:
        rule = self._plan.stop
        if rule is None or self.stopped_after_rounds is not None or self._give_up_s is not None:
            return
        until_s = min(self._all_ended_until_s.values())
        count = rule.whole_rounds(until_s) if until_s < self._plan.workload.duration_s else 0
        if count > self._looked_at:
            self._looked_at = count
            if rule.enough(self._ended, count=count):
                self.stopped_after_rounds = count
                self._say(f"{count} rounds say enough: the run ends early")
                self.stop()

    def _hear(self, end: Connection) -> None:
        number = self._ends[end]
        try:
            said = end.recv()
        except EOFError:
            child = self._processes[number]
            child.join(_SAVE_S)
            self.lost.append(f"load process {number} ended with exit code {child.exitcode} and kept its rows")
            del self._ends[end]
            return
        if isinstance(said, _Told):
            self._progress[number] = said.progress
            self._ended += said.ended
            self._all_ended_until_s[number] = said.all_ended_until_s
        else:
            self.rows += said
            del self._ends[end]

    def _report(self, elapsed_s: float) -> None:
        p = sum(self._progress.values(), Progress())
        mean = f"{p.ttft_sum_s / p.finished:.3f} s" if p.finished else "-"
        self._say(
            f"{elapsed_s:.0f} of {self._plan.workload.duration_s:.0f} s: {p.finished} finished, {p.failed} failed, "
            f"mean TTFT {mean}, {p.sent / elapsed_s:.2f} answers/s"
        )


def _work(share: _Share, end: Connection) -> None:
    """Be a child: send a share of the conversations and hand over the rows."""
    # Whatever ends the parent ends this one too.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes it on
    with _connected(share.plan) as wire:
        signal.signal(signal.SIGTERM, lambda *_: wire.stop())
        driver = Driver(share.plan, share.encoder, wire, share.user_header)

        def tell() -> None:
            ended, until_s = driver.newly_ended() if share.plan.stop else ([], 0.0)
            end.send(_Told(driver.progress, ended, until_s))
            wire.call_at(time.monotonic() + 1.0, tell)

        wire.call_at(share.start_s, tell)
        driver.run(share.conversations, share.start_s)
    end.send(driver.rows)
    end.close()


if __name__ == "__main__":
    sys.exit(main())

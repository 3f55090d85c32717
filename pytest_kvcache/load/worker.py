"""The load process: `python -m pytest_kvcache.load.worker PLAN.json`.

Load is generated outside pytest's process, so that nothing in pytest delays a stamp. This process prepares the script,
warms up, primes, and starts as many children as the rate needs (`children.py`). SIGTERM or SIGINT ends the run early
and keeps what was measured.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from pytest_kvcache.endpoint.address import read_key
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.load import records
from pytest_kvcache.load.ahead import Key, first_requests
from pytest_kvcache.load.children import Children, Share, connected, split
from pytest_kvcache.load.driver import Driver
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.gathering import Gathering
from pytest_kvcache.load.nodes import coordinator
from pytest_kvcache.load.nodes.coordinator import LoadNodes
from pytest_kvcache.load.nodes.link import NodeLink
from pytest_kvcache.load.nodes.messages import KEY_ENV, read_node_key
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.load.settling import settled
from pytest_kvcache.runs import signals
from pytest_kvcache.runs.files import write_json
from pytest_kvcache.showable import make_showable
from pytest_kvcache.workload.salted import salted_script
from pytest_kvcache.workload.script import Script
from pytest_kvcache.workload.tokens import ServedTokenizer, Tokenizer

#: From when those who send are told the start until it comes (s): each of them notes when its conversations begin.
_LEAD_S, _LEAD_EACH_S = 0.5, 1e-4
#: Printed when all that comes before the measured requests is done.
CLOCK_STARTS = "the clock starts"
#: Number of failures before the start that are listed; the rest is counted.
_LISTED = 3
#: Between two lines of progress before the clock starts (s).
_TOLD_S = 5.0


@dataclass
class WorkerOutcome:
    """What a run brought.

    Args:
        rows: One row for each request that the schedule asked for, also where it was never sent.
        started_at: Wall clock at the start (s since the epoch).
        started_monotonic_s: The start on CLOCK_MONOTONIC, from which all times in the rows count.
        elapsed_s: Time from the start to the last answer.
        warmup_errors: What went wrong before the start.
        lost_workers: How those load processes ended that handed over no rows; the rows of the others are kept.
        interrupted: Whether a signal ended the run early.
        workers: Number of load processes.
        nodes: Each load node: address, host, load processes, and how its clock stood to ours before and after; empty
            where this machine sent.
        real_time_senders: Whether the processes that send have real-time priority; it takes a right (CAP_SYS_NICE).
        stopped_after_rounds: Number of whole rounds after which the run was stopped early, since they were enough;
            `rows` has no later ones. None where the run was not stopped so.
        beyond_tokens: Prompt tokens of requests that were sent after those rounds.
        left_out: What of the workload's file was not sent, for people.
        unsettled_stores: Stores into the shared storage that were under way when counters were read.
        primed_on: Name of the server that answered each request of the priming, in order; "" where it does not say.
        counters_before: Counters by component, read when the clock was about to start.
        counters_after: Counters by component, read after the last answer and the stores that followed it.
    """

    rows: list[RequestRecord] = field(default_factory=list)
    started_at: float = 0.0
    started_monotonic_s: float = 0.0
    elapsed_s: float = 0.0
    warmup_errors: list[str] = field(default_factory=list)
    lost_workers: list[str] = field(default_factory=list)
    interrupted: bool = False
    workers: int = 0
    nodes: list[dict[str, Any]] = field(default_factory=list)
    real_time_senders: bool = False
    stopped_after_rounds: int | None = None
    beyond_tokens: int = 0
    unsettled_stores: float = 0.0
    left_out: str = ""
    primed_on: list[str] = field(default_factory=list)
    counters_before: dict[str, dict[str, float]] = field(default_factory=dict)
    counters_after: dict[str, dict[str, float]] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return all fields but the rows."""
        # Not `asdict`, which would copy all rows before they are left out.
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "rows"}


def main() -> int:
    """Read the plan, carry it out, write rows and facts, and return the exit status."""
    make_showable(sys.stdout)
    plan = LoadPlan.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        key = read_key(plan.api_key_env, os.environ) if plan.api_key_env else ""
        carry_out(plan, lambda line: print(line, flush=True), authorization=f"Bearer {key}" if key else "")
    except KvCacheError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def carry_out(plan: LoadPlan, say: Callable[[str], None], *, authorization: str = "") -> WorkerOutcome:
    """Run `plan`, write its files, and return its outcome.

    SIGINT, SIGTERM and SIGHUP end the run early: before the clock starts nothing is measured, and `rows` is empty.

    Args:
        plan: What to send.
        say: Prints a line.
        authorization: Value of the header of that name, "" for none.

    Raises:
        RunError: The workload does not fit the server, or its name has no address.
    """
    outcome = WorkerOutcome()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_Stop())
        try:
            links = stack.enter_context(_nodes(plan))
            script = _script(plan, authorization)
            user_header = script.user_header or plan.names_users
            outcome.left_out = script.left_out
            if script.left_out:
                say(f"left out: {script.left_out}")
            encoder = Encoder(plan, {"Authorization": authorization} if authorization else {})
            encoder.prepare((*script.warm_up, *script.priming))
            first: Mapping[Key, bytes] = {}
            if not links:
                encoder.prepare(turn for user in script.conversations for turn in user.turns)
                first = first_requests(script.conversations, encoder, user_header=user_header)
            outcome.warmup_errors, outcome.primed_on = _before_the_clock(plan, script, encoder, stop, say)
            stop.on(stop.raise_if_asked)
            coordinator.hand_out(links, plan, script)
        except _Interrupted:
            say("interrupted before the clock started: nothing was measured")
            outcome.interrupted = True
            records.save([], plan.rows)
            write_json(plan.summary, outcome.facts())
            return outcome
        # Until there are children, a signal is noted and no more.
        stop.on(lambda: None)
        # A store of the priming that ends in the run would be counted as one of the run's.
        read = partial(settled, plan.metrics_urls, hurry=lambda: stop.asked, lag_s=plan.counters_lag_s)
        outcome.counters_before, before = read()
        own = Share(plan, script.conversations, encoder, user_header, first, script.concurrency)
        senders = _begun(own, script, links, outcome, say)
        stop.on(senders.stop)
        senders.listen()
        outcome.real_time_senders = senders.at_once
        outcome.rows, outcome.lost_workers = senders.rows, senders.lost
        outcome.stopped_after_rounds, outcome.beyond_tokens = senders.stopped_after_rounds, senders.beyond_tokens
        outcome.nodes = senders.facts() if isinstance(senders, LoadNodes) else []
        outcome.elapsed_s = time.monotonic() - outcome.started_monotonic_s
        outcome.counters_after, after = read()
        outcome.unsettled_stores = before + after
        outcome.interrupted = stop.asked
        records.save(outcome.rows, plan.rows)
        write_json(plan.summary, outcome.facts())
    return outcome


def _begun(
    own: Share, script: Script, links: Sequence[NodeLink], outcome: WorkerOutcome, say: Callable[[str], None]
) -> Gathering:
    """Begin on the load nodes, or on load processes of this machine where there are none; note when the clock starts.

    Args:
        own: All that this machine would send.
        script: The run.
        links: Of load nodes that have their shares.
        outcome: Gets the start and the number of load processes.
        say: Prints a line.

    Raises:
        RunError: The clock of a node is not known well enough, or a load process is not ready.
    """
    plan = own.plan
    for link in links:
        link.know_clock(plan.workload.clock_error_budget_s)
    count = outcome.workers = sum(link.workers for link in links) or plan.workload.worker_count(script)
    senders = LoadNodes(links, plan, say) if links else Children(split(own, count), say)
    lead_s = _LEAD_S + _LEAD_EACH_S * len(script.conversations) / count
    start_s = outcome.started_monotonic_s = time.monotonic() + lead_s
    outcome.started_at = time.time() + lead_s
    where = f" on {len(links)} load nodes" if links else ""
    say(f"{CLOCK_STARTS}: {len(script.conversations)} conversations, {count} load processes{where}")
    senders.begin(start_s)
    return senders


def _script(plan: LoadPlan, authorization: str) -> Script:
    tokenizer: Tokenizer | None = None
    if plan.workload.needs_tokenizer:
        helps = plan.workload.HAS_COMPAT
        tokenizer = ServedTokenizer(plan.tokenizer_url, plan.model, authorization=authorization, compat_helps=helps)
    return salted_script(plan.workload, plan.context_tokens, tokenizer, salt=plan.salt, first_user=plan.first_user)


@contextlib.contextmanager
def _nodes(plan: LoadPlan) -> Iterator[list[NodeLink]]:
    """Yield the connections to the plan's load nodes, none where this machine sends."""
    if not plan.nodes:
        yield []
        return
    key = read_node_key(plan.node_key_env or KEY_ENV, os.environ)
    with coordinator.connected(plan.nodes, key, budget_s=plan.workload.clock_error_budget_s) as links:
        yield links


def _before_the_clock(
    plan: LoadPlan, script: Script, encoder: Encoder, stop: _Stop, say: Callable[[str], None]
) -> tuple[list[str], list[str]]:
    """Send warm-up and priming; return what failed, and the server that answered each request of the priming."""
    count, primed = len(script.priming), []
    # A script that was changed after it was made may have another priming than its users are of.
    users = script.primed_users if len(script.primed_users) == count else (None,) * count
    with connected(plan) as wire:
        stop.on(wire.stop)
        driver = Driver(plan, encoder, wire, user_header=plan.names_users)
        rows = driver.at_once(script.warm_up)
        told_s = time.monotonic()
        for number, (turn, user) in enumerate(zip(script.priming, users, strict=True), start=1):
            if stop.asked:
                break
            primed += driver.at_once([turn], user)
            if time.monotonic() - told_s > _TOLD_S:
                told_s = time.monotonic()
                say(f"filling caches: {number} of {count} prompts")
    stop.raise_if_asked()
    errors = [f"{row.status}: {row.error}" for row in (*rows, *primed) if row.status != records.OK]
    more = len(errors) - _LISTED
    listed = [*errors[:_LISTED], *([f"and {more} more"] if more > 0 else [])]
    return listed, [row.server for row in primed]


class _Interrupted(BaseException):
    """A signal that came before anything was measured. No handler of errors may take it for one."""


class _Stop:
    """Turns SIGINT, SIGTERM and SIGHUP, unless they are ignored, into a call that stops what runs at that moment.

    Where there is nothing to call it raises: a program that waits for a server's tokenizer must not wait on.
    """

    def __init__(self) -> None:
        self.asked = False
        self._action: Callable[[], None] = self.raise_if_asked
        self._restore: Callable[[], None] = lambda: None

    def on(self, action: Callable[[], None]) -> None:
        """Have a signal call `action` from now on; call it at once where a signal came already."""
        self._action = action
        if self.asked:
            action()

    def raise_if_asked(self) -> None:
        """Raise `_Interrupted` where a signal came."""
        if self.asked:
            raise _Interrupted

    def __enter__(self) -> _Stop:
        self._restore = signals.handle((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _stop(self, _number: int, _frame: object) -> None:
        self.asked = True
        self._action()


if __name__ == "__main__":
    # The run ends this process with SIGTERM, also where the run itself was started with SIGTERM ignored.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(main())

"""Which runs may be judged."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pandas as pd
import pytest

from pytest_kvcache.load import validity
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.load.table import to_frame
from pytest_kvcache.workload.multi_round import MultiRoundQa

WORKLOAD = MultiRoundQa(
    users=2,
    rounds=2,
    qps=10,
    shared_prompt_tokens=10,
    context_tokens=(50,),
    answer_tokens=4,
    duration_s=10,
    send_late_budget_s=0.05,
    residual_budget_s=0.2,
)


def row(i: int, **more: object) -> RequestRecord:
    """Return a good request."""
    at = i / 10
    values = {
        "user": i,
        "round": 1,
        "intended_start_s": at,
        "due_s": at,
        "actual_start_s": at + 0.001,
        "first_token_s": at + 0.1,
        "last_token_s": at + 0.2,
        "intended_prompt_tokens": 100,
        "prompt_tokens": 100,
        "intended_generated_tokens": 4,
        "generated_tokens": 4,
        "status": "ok",
        "residual_s": 0.01,
        **more,
    }
    return RequestRecord(**values)  # type: ignore[arg-type]


def table(**changed: Mapping[str, object]) -> pd.DataFrame:
    """Return 100 requests, those named `rN` changed."""
    return to_frame([row(i, **changed.get(f"r{i}", {})) for i in range(100)])


def test_a_good_run_has_no_fault() -> None:
    """All answered, all on time, all lengths right: nothing is said."""
    assert validity.faults(table(), WORKLOAD, {}) == []
    assert validity.suspicions(table(), WORKLOAD) == []


@pytest.mark.parametrize(
    ("rows", "facts", "message"),
    [
        (
            table(r3={"status": "timed-out", "error": "too slow"}),
            {},
            "1 of 100 requests failed (1 timed-out); the first: too",
        ),
        (
            table(r3={"prompt_tokens": 99}),
            {},
            "1 of 100 prompts have not the length that was asked for; the first, user 3",
        ),
        (table(r3={"generated_tokens": 3}), {}, "1 of 100 answers have not the length"),
        (table(r3={"actual_start_s": 0.9}, r4={"actual_start_s": 0.9}), {}, "the client sent late: p99"),
        (table(), {"warmup_errors": ["timed-out: x"]}, "warm-up request failed: timed-out: x"),
        (table(), {"lost_workers": ["load process 1 ended"]}, "load process 1 ended"),
        (table(), {"interrupted": True}, "the run was ended before its time"),
    ],
    ids=["failed", "prompt", "answer", "late", "warm-up", "lost", "interrupted"],
)
def test_what_makes_a_run_invalid(rows: pd.DataFrame, facts: dict[str, object], message: str) -> None:
    """Each fault is one line that says what and how much."""
    (fault,) = validity.faults(rows, WORKLOAD, facts)
    assert fault.startswith(message)


def test_a_client_that_does_not_keep_up() -> None:
    """When requests that were due leave after the end of the run, the delivered rate is named."""
    late = {f"r{i}": {"actual_start_s": 10.2} for i in range(95, 100)}
    found = validity.faults(table(**late), WORKLOAD, {})
    assert any("the client delivered 9.50 of 10.00 requests/s: 5 left after the end" in fault for fault in found)


def test_users_who_are_late_are_not_the_clients_fault() -> None:
    """A server so slow that users miss their turns makes figures bad, not the run invalid."""
    waiting = {f"r{i}": {"status": "not-sent", "actual_start_s": None, "due_s": None} for i in range(50, 100)}
    assert validity.faults(table(**waiting), WORKLOAD, {}) == []


def test_nothing_sent() -> None:
    """A run without a request is invalid."""
    nothing = {f"r{i}": {"actual_start_s": None, "due_s": None, "status": "not-sent"} for i in range(100)}
    assert validity.faults(table(**nothing), WORKLOAD, {}) == ["no request was sent"]


def test_allowed_failures() -> None:
    """A share of failures that the workload allows is not a fault."""
    lenient = WORKLOAD.model_copy(update={"allowed_failures": 0.02})
    assert validity.faults(table(r1={"status": "timed-out"}, r2={"status": "malformed"}), lenient, {}) == []


def test_a_residual_over_budget_is_suspect() -> None:
    """Client TTFT far beyond the server's own is pointed out with figure, budget and key."""
    (found,) = validity.suspicions(table(r1={"residual_s": 5.0}, r2={"residual_s": 5.0}), WORKLOAD)
    assert "budget 200 ms (workload.residual_budget_s)" in found


def stream(*times: float, ttft_s: float = 0.1, tokens: int = 20) -> dict[str, object]:
    """Return what a row has of an answer whose chunks arrive at these times after the first token."""
    return {
        "actual_start_s": 0.0,
        "first_token_s": ttft_s + times[0],
        "last_token_s": ttft_s + times[-1],
        "token_times_s": [ttft_s + at for at in times],
        "generated_tokens": tokens,
    }


def bursts(*rows: dict[str, object]) -> list[str]:
    """Return what is said of these answers being held back."""
    frame = table(**{f"r{i}": row for i, row in enumerate(rows)}).head(len(rows))
    return [line for line in validity.suspicions(frame, WORKLOAD) if "collects the stream" in line]


_STEADY = [i * 0.005 for i in range(20)]
_AT_ONCE = [0.0] * 20

HELD_BACK = {
    "all at once": stream(*_AT_ONCE),
    "all at once, each chunk sent for itself": stream(*(i * 0.0006 for i in range(20))),
    "as the issue has it": stream(*(i * 0.0006 for i in range(100)), ttft_s=1.3),
    "all but the first token": stream(0.0, *([0.3] * 19)),
    "eight of them": stream(*([0.0] * 8), tokens=8),
    "a block of five at a time": stream(*(i // 5 * 0.1 + i % 5 * 0.0001 for i in range(20))),
    "a block of 40 at a time, soon after the first token": stream(
        *(i // 40 * 0.4 + i % 40 * 0.00005 for i in range(200)), ttft_s=0.02, tokens=200
    ),
    "whole, in one chunk": stream(0.0),
    "whole, in one chunk, after a long prefill": stream(0.0, ttft_s=30, tokens=8),
}
HONEST = {
    "steady": stream(*_STEADY),
    "quick": stream(*(i * 0.0015 for i in range(20))),
    "a step in half a millisecond": stream(*(i * 0.0005 for i in range(100)), ttft_s=0.05, tokens=100),
    "such steps, with some long ones": stream(*(i * 0.0007 + i // 25 * 0.01 for i in range(100)), ttft_s=0.05),
    "two at a time, as of a step that decodes two": stream(*(i // 2 * 0.01 for i in range(20))),
    "a long prefill, then quick": stream(*(i * 0.004 for i in range(20)), ttft_s=30),
    "no model at all": stream(*_AT_ONCE, ttft_s=0.005),
    "no model, chunk by chunk": stream(*(i * 0.00005 for i in range(20)), ttft_s=0.005),
    "several tokens in each chunk": stream(0.0, 0.1, 0.2, tokens=30),
    "too few to tell": stream(*([0.0] * 7), tokens=7),
    "a short answer in one chunk": stream(0.0, tokens=7),
    "one token": stream(0.0, tokens=1),
}


@pytest.mark.parametrize("kind", HELD_BACK)
def test_answers_that_were_held_back_are_suspect(kind: str) -> None:
    """A proxy that collects a stream makes its times doubtful, whether it collects all of it or a part at a time."""
    (found,) = bursts(HELD_BACK[kind], HELD_BACK[kind])
    assert "2 of 2" in found
    assert "proxy_buffering off" in found


@pytest.mark.parametrize("kind", HONEST)
def test_quick_answers_are_not_suspect(kind: str) -> None:
    """A server that is quick, or decodes several tokens a step, is not taken for a proxy that collects a stream."""
    assert bursts(HONEST[kind], HONEST[kind]) == []


def test_one_answer_in_bursts_is_no_proxy() -> None:
    """Most of the answers must come in bursts, and short ones do not count."""
    assert bursts(stream(*_AT_ONCE), stream(*_STEADY)) == []
    assert bursts(stream(*_AT_ONCE), stream(0.0, tokens=1), stream(0.0, tokens=1)) != []


def test_failed_answers_tell_nothing_of_bursts() -> None:
    """Rows without an answer, which have no count of tokens, are left out."""
    failed = {**stream(*_AT_ONCE), "status": "broken-stream", "generated_tokens": None}
    assert bursts(failed, failed) == []


def shares(count: int, more: Mapping[str, object] = MappingProxyType({}), *, of: int = 40) -> list[str]:
    """Return what is said of first tokens in a run of `of` answers, `count` of which shared their read."""
    answer = {**stream(*_STEADY), **more}
    rows = {f"r{i}": {**answer, "first_token_shared": i < count} for i in range(of)}
    return validity.suspicions(table(**rows).head(of), WORKLOAD)


def test_first_tokens_that_share_their_reads_are_suspect() -> None:
    """Above the declared share of the answers, their TTFT is doubtful; the key says which share that is."""
    (found,) = shares(3)
    assert "3 of 40 answers" in found
    assert "more than 5% (workload.shared_reads_budget)" in found
    assert shares(2) == shares(0) == []
    lenient = WORKLOAD.model_copy(update={"shared_reads_budget": 0.5})
    rows = {f"r{i}": {**stream(*_STEADY), "first_token_shared": i < 20} for i in range(40)}
    assert validity.suspicions(table(**rows).head(40), lenient) == []


def test_one_first_token_may_share_its_read() -> None:
    """A single such answer is no run of them, however few there are."""
    assert shares(1, of=2) == []
    assert len(shares(2, of=2)) == 1


def test_quick_answers_may_share_their_reads() -> None:
    """An answer that is over sooner than an engine could give it has no TTFT that is far off."""
    assert shares(40, stream(*_AT_ONCE, ttft_s=0.005)) == []


def test_a_proxy_that_collects_is_the_only_cause_named() -> None:
    """Answers that were held back share their reads too, and are reported once."""
    (found,) = shares(40, stream(*_AT_ONCE, ttft_s=1.0))
    assert "collects the stream" in found


def test_failed_answers_tell_nothing_of_shared_reads() -> None:
    """Rows without a whole answer are left out."""
    assert shares(40, {"status": "broken-stream"}) == []

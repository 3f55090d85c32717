"""Which runs may be judged."""

from __future__ import annotations

from collections.abc import Mapping

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


def stream(*times: float) -> dict[str, object]:
    """Return what a row has of an answer whose chunks arrive at these times after the first token."""
    return {"token_times_s": [0.1 + at for at in times], "last_token_s": 0.1 + times[-1]}


_STEADY = [i * 0.005 for i in range(20)]


@pytest.mark.parametrize(
    ("times", "told"),
    [
        (_STEADY, False),
        ([i * 0.0015 for i in range(20)], False),
        ([i * 0.0006 for i in range(20)], True),
        ([0.0] * 20, True),
        ([i // 5 * 0.1 + i % 5 * 0.0001 for i in range(20)], True),  # a block of five at a time
        ([i // 2 * 0.01 for i in range(20)], False),  # two at a time, as of a step that decodes two
        ([0.0] * 7, False),  # too few to tell
    ],
)
def test_a_stream_in_bursts_is_suspect(times: list[float], told: bool) -> None:
    """A proxy that collects a stream makes its times doubtful, whether it collects all of it or a part at a time."""
    rows = table(r0=stream(*times), r1=stream(*times))
    found = [line for line in validity.suspicions(rows.head(2), WORKLOAD) if "bursts" in line]
    assert bool(found) == told
    if told:
        assert "2 of 2 answers" in found[0]
        assert "proxy_buffering off" in found[0]


def test_one_answer_in_bursts_is_no_proxy() -> None:
    """Most of the answers must come in bursts."""
    rows = table(r0=stream(*[0.0] * 20), r1=stream(*_STEADY)).head(2)
    assert not [line for line in validity.suspicions(rows, WORKLOAD) if "bursts" in line]

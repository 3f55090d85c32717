"""Mode compat against recorded facts of the original script, run under a clock of our own (data/reference.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pytest_kvcache.tiers.catalogue import load
from pytest_kvcache.workload import reference, reference_csv
from pytest_kvcache.workload.multi_round import MultiRoundQa
from pytest_kvcache.workload.script import Script

FACTS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "reference.json").read_text())
KEYS = ("users", "rounds", "qps", "first_user")


@pytest.mark.parametrize("case", FACTS["schedules"], ids=lambda c: f"{c['users']} users, {c['rounds']} rounds")
def test_with_its_drift_the_schedule_is_the_originals(case: dict[str, Any]) -> None:
    """Every request of the original is there, of the same user and question, at the same look, and no other."""
    sessions = reference.schedule(
        **{key: case[key] for key in KEYS},
        duration_s=case["duration_s"] + 1e-6,
        poll_s=case["poll_s"],
        drift=True,
    )
    ours = sorted((s.user, a.question, round(a.at_s / case["poll_s"])) for s in sessions for a in s.turns)
    assert ours == sorted(map(tuple, case["asked"]))


@pytest.mark.parametrize("case", FACTS["schedules"], ids=lambda c: f"{c['users']} users, {c['rounds']} rounds")
def test_without_drift_each_request_comes_no_later_than_in_the_original(case: dict[str, Any]) -> None:
    """Absolute times: the same users ask the same questions, never later and at most the added-up polls earlier."""
    sessions = reference.schedule(**{key: case[key] for key in KEYS}, duration_s=case["duration_s"])
    ours = {(s.user, a.question): a.at_s for s in sessions for a in s.turns}
    for user, question, look in case["asked"]:
        theirs = look * case["poll_s"]
        joins = user - case["first_user"] - case["users"]
        polls = question + max(joins, 0) + 1
        assert theirs - polls * case["poll_s"] - 1e-6 <= ours[user, question] <= theirs + 1e-6


def test_the_articles_schedule() -> None:
    """With 15 users, 20 rounds, 2 requests/s: a gap of 7.5 s, a join each 9.5 s, one more user at the start."""
    sessions = reference.schedule(users=15, rounds=20, qps=2, duration_s=1200)
    assert reference.gap_s(users=15, qps=2) == 7.5
    assert reference.join_step_s(users=15, rounds=20, qps=2) == 9.5
    joined = [s.turns[0].at_s for s in sessions if s.turns[0].question == 1]
    assert joined[:3] == pytest.approx([0.0, 9.5, 19.0])
    aged = [s for s in sessions if s.user <= 15]
    assert [s.user for s in aged] == list(range(2, 16))  # the oldest has nothing left to ask
    assert aged[-1].turns[0].question == 3
    assert aged[-1].turns[0].at_s == pytest.approx(5.5)
    count = sum(len(s.turns) for s in sessions)
    assert count / 1200 == pytest.approx(2 * 20 / 19, rel=0.01)


def compat(**more: Any) -> Script:
    """Return the script of a small compat run."""
    workload = MultiRoundQa(
        **{
            "mode": "compat",
            "users": 2,
            "rounds": 3,
            "qps": 1,
            "shared_prompt_tokens": FACTS["prompts"]["shared_tokens"],
            "context_tokens": (FACTS["prompts"]["context_tokens"],),
            "answer_tokens": 7,
            "duration_s": 10,
            **more,
        }
    )
    return workload.script(FACTS["prompts"]["context_tokens"], None, first_user=40)


def test_the_texts_are_the_originals() -> None:
    """A user who joined sends the original's messages word for word, and so does one that was there already."""
    script = compat()
    by_user = {c.user: c for c in script.conversations}
    joined = [t.messages for t in by_user[43].turns]
    sent = [
        [{"role": m.role, "content": m.text} for m in joined[0]],
        *([{"role": m.role, "content": m.text} for m in messages] for messages in joined[1:]),
    ]
    assert sent[0] == FACTS["prompts"]["joined"]
    answer = {"role": "assistant", "content": FACTS["prompts"]["answer"]}
    assert [*sent[0], answer, *sent[1], answer, *sent[2]] == FACTS["prompts"]["third_round"]
    assert [{"role": m.role, "content": m.text} for m in by_user[42].turns[0].messages] == FACTS["prompts"][
        "aged_first"
    ]
    assert {t.answer_tokens for c in script.conversations for t in c.turns} == {FACTS["prompts"]["max_tokens"]}
    assert all(c.answers_return for c in script.conversations)
    assert script.user_header
    assert reference.warm_up(3) == FACTS["prompts"]["warm_up"]


def test_the_articles_parameters_in_compat() -> None:
    """The built-in compat profile asks for what the article ran, and lets answers end as the original does."""
    workload = load(None).profile("qwen3-8b-compat").workload
    assert isinstance(workload, MultiRoundQa)
    assert (workload.mode, workload.ignore_eos, workload.warmup_requests) == ("compat", False, 10)
    assert (workload.users, workload.rounds, workload.qps, workload.duration_s) == (15, 20, 2, 1200)


def rows() -> pd.DataFrame:
    """Return three requests of two users, one of which failed."""
    return pd.DataFrame(
        {
            "user": [1, 2, 1, 2],
            "status": ["ok", "ok", "ok", "timed-out"],
            "prompt_tokens": pd.array([100, 200, 300, None], dtype="Int64"),
            "generated_tokens": pd.array([10, 20, 30, None], dtype="Int64"),
            "actual_start_s": [0.0, 1.0, 2.0, 3.0],
            "first_token_s": [0.5, 1.25, 2.75, None],
            "last_token_s": [1.5, 3.25, 5.75, None],
        }
    )


def test_the_csv_has_the_originals_columns() -> None:
    """One line a finished request, questions of a user counted from 1, times of launch and end on the wall clock."""
    table = reference_csv.csv_table(rows(), started_at=1000.0)
    assert tuple(table.columns) == reference_csv.COLUMNS
    assert table["user_id"].tolist() == [1, 1, 2]
    assert table["question_id"].tolist() == [1, 2, 1]
    assert table["launch_time"].tolist() == [1000.0, 1002.0, 1001.0]
    assert table["finish_time"].tolist() == [1001.5, 1005.75, 1003.25]
    assert table["ttft"].tolist() == [0.5, 0.75, 0.25]
    assert table["generation_time"].tolist() == [1.0, 3.0, 2.0]


def test_the_summary_has_the_originals_formulas() -> None:
    """Rates are over the time from the start to the last end; decode throughput and TTFT are means over requests."""
    table = reference_csv.csv_table(rows(), started_at=1000.0)
    found = reference_csv.summary(table, started_at=1000.0, config_qps=1.0, pending=1)
    assert found is not None
    total = 5.75
    assert found.total_s == pytest.approx(total)
    assert found.actual_qps == pytest.approx(4 / total)
    assert found.processing_speed == pytest.approx(3 / total)
    assert found.input_tokens_per_s == pytest.approx(600 / total)
    assert found.output_tokens_per_s == pytest.approx(60 / total)
    assert found.decode_tokens_per_s == pytest.approx((10 / 1 + 30 / 3 + 20 / 2) / 3)
    assert found.ttft_mean_s == pytest.approx(0.5)
    assert reference_csv.summary(table[:0], started_at=0, config_qps=1) is None

"""Every key of every kind of workload has an effect, or is refused: none is taken and says nothing."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.client.exchange import Exchange
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.load import validity
from pytest_kvcache.load.ahead import first_requests
from pytest_kvcache.load.driver import Driver
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.load.table import to_frame
from pytest_kvcache.tiers.catalogue import validate
from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.registry import workload_kinds
from pytest_kvcache.workload.script import Script, Turn
from tests.unit.test_exact import Words

#: Stands for a value that is refused beside the others of its case.
REFUSED = object()
#: Keys of every kind, each with another value than it has by default or in the cases below.
COMMON: dict[str, Any] = {
    "context_tokens": [1500],
    "duration_s": 4.0,
    "ignore_eos": False,
    "warmup_requests": 2,
    "request_timeout_s": 77.0,
    "token_timeout_s": 33.0,
    "workers": 3,
    "send_late_budget_s": 0.2,
    "residual_budget_s": 0.9,
    "shared_reads_budget": 0.9,
    "clock_error_budget_s": 0.4,
    "clock_drift_budget_ppm": 900.0,
    "allowed_failures": 0.5,
}
STEADY = {"users": 4, "rounds": 3, "qps": 1.0}
TRACE = {"path": "other trace.jsonl", "trace_format": "dynamo-delta", "block_tokens": 600, "time_unit": "s"}
QA = {"users": 3, "rounds": 2, "qps": 2.0, "shared_prompt_tokens": 60, "answer_tokens": 10}
#: Each case: the kind, the keys that it is made of, and another value for each of its own keys.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "multi-round-qa, exact": (
        "multi-round-qa",
        QA,
        STEADY
        | {
            "mode": "compat",
            "seed": 1,
            "shared_prompt_tokens": 70,
            "question_tokens": 40,
            "answer_tokens": 9,
            "yardsticks": 2,
        },
    ),
    "multi-round-qa, compat": (
        "multi-round-qa",
        QA | {"mode": "compat"},
        STEADY
        | {
            "mode": "exact",
            "seed": REFUSED,
            "shared_prompt_tokens": 70,
            "question_tokens": REFUSED,
            "answer_tokens": 9,
            "yardsticks": REFUSED,
        },
    ),
    "sharegpt": (
        "sharegpt",
        {"path": "talks.jsonl", "users": 3, "rounds": 2, "qps": 2.0, "answer_tokens": 10},
        STEADY | {"path": "other.jsonl", "answer_tokens": 1, "skip_conversations": 3},
    ),
    "mooncake-trace": (
        "mooncake-trace",
        {"path": "trace.jsonl", "trace_format": "dynamo"},
        TRACE | {"seed": 1, "speed": 2.0, "concurrency": 1},
    ),
    "mooncake-trace, concurrency": (
        "mooncake-trace",
        {"path": "trace.jsonl", "trace_format": "dynamo", "concurrency": 2},
        TRACE | {"seed": 1, "speed": REFUSED, "concurrency": 1},
    ),
}
#: Values that `validate` itself refuses in place of `REFUSED`.
VAIN = {"seed": 1, "question_tokens": 40, "yardsticks": 2, "speed": 2.0}
PARAMETERS = [(case, key) for case, (_, _, own) in CASES.items() for key in (*COMMON, *own)]


class Noted:
    """Stands in for a wire: keeps what is submitted, and sends nothing."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def submit(self, exchange: Exchange) -> None:
        """Keep it."""
        self.exchanges.append(exchange)

    def run(self) -> None:
        """Do nothing."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of conversations and two traces."""
    for name, mark in (("talks", "a"), ("other", "b")):
        talks = []
        for n in range(60):
            repeated = 200 if n == 0 else 30  # the first is too long for the shorter context
            texts = [f"{mark} {n} {i} " * repeated for i in range(8)]
            talks.append(
                {"messages": [{"role": ("user", "assistant")[i % 2], "content": each} for i, each in enumerate(texts)]}
            )
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, talks)), encoding="utf-8")
    # Length of each prompt, and how many blocks of 512 tokens (or of 600) it has after its own first one.
    prompts = [(1000, 1), (1900, 3), (1024, 1), (800, 1), (700, 1), (900, 1)]
    turns = [
        {"session_id": "s", "timestamp": 10, "input_length": 650, "output_length": 5, "hash_ids": [91, 92]},
        {"session_id": "s", "delay": 500, "input_length": 700, "output_length": 5, "hash_ids": [91, 93]},
    ]
    for name, first in (("trace", 100), ("other trace", 200)):
        rows = [
            {
                "timestamp": 900 * n,
                "input_length": length,
                "output_length": 20,
                "hash_ids": [first + n, *range(7, 7 + others)],
            }
            for n, (length, others) in enumerate(prompts)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, [*rows, *turns])), encoding="utf-8")
    return tmp_path


def made(case: str, folder: Path, **more: Any) -> Workload:
    """Return the workload of a case, with other values of some keys."""
    kind, keys, _ = CASES[case]
    values = {"kind": kind, "context_tokens": [2000], "duration_s": 6.0, **keys, **more}
    model: type[Workload] = workload_kinds()[kind].load()
    return validate(model, values, "x", folder)


#: What a load process says of a load node whose clock is beyond every budget by default.
NODES = {"nodes": [{"address": "h:1", "clock": {"error_s": 0.2, "drift_ppm": 500.0, "drift_uncertainty_ppm": 1.0}}]}


def seen(workload: Workload) -> dict[str, Any]:
    """Return all that a run of a workload sends, how, and what is thought of one fixed table of its requests."""
    length = workload.context_tokens[0]
    script = workload.script(length, Words())
    plan = LoadPlan(
        base_url="http://h/v1",
        model="m",
        workload=workload,
        context_tokens=length,
        tokenizer_url="http://h",
        rows=Path("r"),
        summary=Path("s"),
    )
    encoder = Encoder(plan, {})
    return {
        "requests": requests(script, encoder),
        "concurrency": script.concurrency,
        "workers": workload.worker_count(script),
        "begun late": begun(plan, script, encoder),
        "judged": (validity.faults(table(), workload, NODES), validity.suspicions(table(), workload)),
    }


def requests(script: Script, encoder: Encoder) -> list[Any]:
    """Return each request with its time."""

    def of(turn: Turn) -> Any:
        return (turn.round, turn.at_s, turn.after_s, encoder.encode((), turn, None))

    turns = [(c.user, of(turn)) for c in script.conversations for turn in c.turns]
    return [turns, [of(turn) for turn in script.warm_up], [of(turn) for turn in script.priming]]


def begun(plan: LoadPlan, script: Script, encoder: Encoder) -> list[tuple[float, float | None]]:
    """Return the limits of the requests that are begun when 5 s of the run have passed."""
    wire = Noted()
    firsts = [dataclasses.replace(c, turns=c.turns[:1]) for c in script.conversations]
    driver = Driver(plan, encoder, wire, False, {}, script.concurrency)  # type: ignore[arg-type]
    driver.first = first_requests(firsts, encoder, user_header=False)
    driver.run(firsts, lambda: time.monotonic() - 5.0)
    return [(round(each.deadline_s - each.due_s, 6), each.stall_s) for each in wire.exchanges]


def table() -> Any:
    """Return rows that are late, far from the server's times, read together, and failed for a part."""
    rows = []
    for n in range(10):
        due = n * 0.5
        sent = due + 0.1
        times = [sent + 0.1 + 0.02 * i for i in range(10)]
        row = RequestRecord(n, 1, due, due, sent, times[0], times[-1], status="ok", token_times_s=times)
        row.generated_tokens, row.residual_s, row.first_token_shared = 10, 0.7, n % 2 == 0
        rows.append(row)
    rows[9] = RequestRecord(9, 1, 4.5, 4.5, 4.6, status="http-error", error="503")
    return to_frame(rows)


def test_every_key_is_in_the_table() -> None:
    """A kind that is added, or a key that is added to one, needs a case and another value here."""
    assert {kind for kind, _, _ in CASES.values()} == set(workload_kinds())
    for kind, keys, own in CASES.values():
        model: type[Workload] = workload_kinds()[kind].load()
        assert set(model.model_fields) - {"kind"} == set(COMMON) | set(own), kind
        assert set(keys) <= set(own)
    assert set(Workload.model_fields) - {"kind"} == set(COMMON)


@pytest.mark.parametrize(("case", "key"), PARAMETERS)
def test_a_key_has_an_effect_or_is_refused(case: str, key: str, folder: Path) -> None:
    """Another value of a key changes what is sent, when, by whom, or what is thought of it; or it is refused."""
    other = (COMMON | CASES[case][2])[key]
    if other is REFUSED:
        with pytest.raises(ConfigError, match=rf"x.*{key}.* says nothing "):
            made(case, folder, **{key: VAIN[key]})
        return
    usual = made(case, folder)
    assert getattr(usual, key) != other
    before, after = seen(usual), seen(made(case, folder, **{key: other}))
    assert before == seen(usual)
    assert before != after


def test_a_seed_says_nothing_to_conversations_of_a_file(folder: Path) -> None:
    """`sharegpt` sends what is in its file: it has no seed, as the error says, whatever its value."""
    for seed in (0, 1):
        with pytest.raises(ConfigError, match=r"x\.seed: unknown key; allowed: .*skip_conversations"):
            made("sharegpt", folder, seed=seed)

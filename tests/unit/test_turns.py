"""Loads without a balancer: the client takes turns over the servers, the same in every boot."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from pytest_kvcache.load import worker
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.table import read
from pytest_kvcache.load.turns import turn_of
from pytest_kvcache.proof.routing import Routing, check_routing
from pytest_kvcache.workload.multi_round import MultiRoundQa
from pytest_kvcache.workload.script import Message, Turn
from tests.stubs.server import stub_server


def plan_of(tmp_path: Path, urls: list[str], workers: int | None = None, mode: str = "exact") -> LoadPlan:
    """Return a plan whose requests go to servers in turn."""
    exact = {"shared_prompt_tokens": 10, "answer_tokens": 3} if mode == "exact" else {}
    workload = MultiRoundQa.model_validate(
        {
            "users": 5, "rounds": 6, "qps": 30, "context_tokens": [50], "duration_s": 1.5, "warmup_requests": 4,
            "send_late_budget_s": 5, "shared_prompt_tokens": 10, "answer_tokens": 3, "mode": mode, "workers": workers,
            **exact,
        }
    )  # fmt: skip
    return LoadPlan(
        base_url=f"{urls[0]}/v1",
        turn_urls=tuple(f"{url}/v1" for url in urls),
        model="stub",
        workload=workload,
        context_tokens=50,
        tokenizer_url=urls[0],
        rows=tmp_path / "rows.parquet",
        summary=tmp_path / "load.json",
    )


@pytest.mark.parametrize("mode", ["exact", "compat"])
@pytest.mark.parametrize("workers", [1, 2])
def test_each_request_is_answered_by_the_server_of_its_turn(tmp_path: Path, workers: int, mode: str) -> None:
    """Whatever the number of load processes, rows name the server that user and round say, and both get as many."""
    names = ("vllm-0", "vllm-1")
    with (
        stub_server(tmp_path, "--response-role", f"assistant@{names[0]}") as first,
        stub_server(tmp_path, "--response-role", f"assistant@{names[1]}") as second,
    ):
        plan = plan_of(tmp_path, [first, second], workers, mode)
        outcome = worker.carry_out(plan, lambda _: None)
    rows = read(plan.rows)
    sent = rows[rows["status"] == "ok"]
    assert len(sent) > 30
    expected = [names[turn_of(u, r, 2)] for u, r in zip(sent["user"], sent["round"], strict=True)]
    assert list(sent["server"]) == expected
    counts = Counter(expected)
    assert abs(counts["vllm-0"] - counts["vllm-1"]) <= sent["user"].nunique()
    found = check_routing(rows, Routing("none turns", "turns", names, by_client=True))
    assert found.faults == ()
    facts = json.loads(plan.summary.read_text())
    assert facts["primed_on"] == outcome.primed_on
    if mode == "exact":
        before = list(plan.workload.due(before=True))  # type: ignore[attr-defined]
        assert outcome.primed_on == [names[turn_of(due.user, due.round, 2)] for due in before]
    assert outcome.warmup_errors == []


def test_filling_caches_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While prompts fill the caches before the clock starts, a line says how many of how many were sent."""
    monkeypatch.setattr(worker, "_TOLD_S", 0.0)
    said: list[str] = []
    with stub_server(tmp_path) as url:
        plan = plan_of(tmp_path, [url])
        worker.carry_out(plan, said.append)
    count = len(list(plan.workload.due(before=True)))  # type: ignore[attr-defined]
    told = [line for line in said if line.startswith("filling caches")]
    assert count
    assert told == [f"filling caches: {number} of {count} prompts" for number in range(1, count + 1)]


def test_one_server_that_is_gone_fails_its_own_requests_only(tmp_path: Path) -> None:
    """Half of the requests cannot be sent, and the other half is answered."""
    with stub_server(tmp_path, "--response-role", "assistant@vllm-0") as first:
        plan = plan_of(tmp_path, [first, "http://127.0.0.1:9"])
        worker.carry_out(plan, lambda _: None)
    rows = read(plan.rows)
    for user, number, status in zip(rows["user"], rows["round"], rows["status"], strict=True):
        assert status == ("ok" if turn_of(user, number, 2) == 0 else "no-connection")


def test_requests_name_the_host_that_they_go_to(tmp_path: Path) -> None:
    """The head of a request has the host and the path of its own server."""
    plan = plan_of(tmp_path, ["http://one:1", "http://two:2/below"])
    encoder = Encoder(plan, {})
    turn = Turn(1, 0.0, (Message("user", ("hi",)),), 1)
    heads = [encoder.encode((), turn, None, encoder.place(user, turn)).split(b"\r\n\r\n")[0] for user in (1, 2)]
    assert heads[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: one:1\r\n")
    assert heads[1].startswith(b"POST /below/v1/chat/completions HTTP/1.1\r\nHost: two:2\r\n")


def test_one_address_has_no_turns(tmp_path: Path) -> None:
    """Behind a balancer every request goes to the one address, as before."""
    plan = plan_of(tmp_path, ["http://one:1"]).model_copy(update={"turn_urls": ()})
    turn = Turn(3, 0.0, (Message("user", ("hi",)),), 1)
    assert {Encoder(plan, {}).place(user, turn) for user in range(-3, 9)} == {0}


@pytest.mark.parametrize("names", [True, False])
def test_users_are_named_where_the_balancer_goes_by_them(
    tmp_path: Path, names: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With affinity each request says whose it is, in the priming too; else an exact workload says nothing."""
    sent: list[bytes] = []
    encode = Encoder.encode

    def noted(self: Encoder, *args: object, **more: object) -> bytes:
        sent.append(encode(self, *args, **more))  # type: ignore[arg-type]
        return sent[-1]

    monkeypatch.setattr(Encoder, "encode", noted)
    with stub_server(tmp_path) as url:
        plan = plan_of(tmp_path, [url], workers=1).model_copy(update={"turn_urls": (), "names_users": names})
        worker.carry_out(plan, lambda _: None)
        primed = list(plan.workload.due(before=True))  # type: ignore[attr-defined]
    # The requests of this process: warm-up, priming, and those that are made before the clock starts.
    assert sum(b"x-user-id: " in each for each in sent) == (len(sent) - 4 if names else 0)
    assert len(sent) > 4 + len(primed)

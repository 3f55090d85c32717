"""A balancer is held against its own policy's promise, and the oracle follows the servers that answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.config.balancer import MEANINGS, Promise
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.load.table import to_frame
from pytest_kvcache.load.turns import turn_of
from pytest_kvcache.proof.claims import check_claim
from pytest_kvcache.proof.expected_hits import Hierarchy, expectable, simulate
from pytest_kvcache.proof.ledger import Ledger, Tokens
from pytest_kvcache.proof.oracle_requests import oracle_requests
from pytest_kvcache.proof.routing import Routing, check_routing, idle_is_fault
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.workload.multi_round import MultiRoundQa

PAIR = ("vllm-0", "vllm-1")
#: Where each behaviour sends the n-th request, of a user.
BEHAVIOURS: dict[str, Callable[[int, int], str]] = {
    "turns": lambda n, _user: PAIR[n % 2],
    "by user": lambda _n, user: PAIR[user % 2],
    "all to one": lambda _n, _user: PAIR[0],
    "chance": lambda n, _user: PAIR[sha256(b"%d" % n).digest()[0] % 2],
    "three to one": lambda n, _user: PAIR[n % 4 == 0],
    "a user moves once": lambda n, user: PAIR[(user + (n > 50)) % 2],
}
#: Of each promise, the behaviours that break it.
BROKEN: dict[Promise, set[str]] = {
    "turns": {"three to one", "all to one", "by user", "a user moves once"},
    "random": {"all to one", "three to one"},
    "load": {"all to one"},
    "user": {"turns", "chance", "three to one", "a user moves once"},
    "prefix": set(),
    "nothing": {"all to one"},
}
USERS, COUNT = 5, 240


def rows(servers: Sequence[str], users: int = USERS) -> pd.DataFrame:
    """Return answered requests of users in turn; a server "" has failed."""
    found = []
    for n, server in enumerate(servers):
        row = RequestRecord(user=n % users, round=1 + n // users, intended_start_s=float(n))
        row.actual_start_s, row.server = float(n), server
        if server:
            row.status, row.prompt_tokens, row.generated_tokens = "ok", 100 + n, 10
        else:
            row.status = "http-error"
        found.append(row)
    return to_frame(found)


def sent(behaviour: str, count: int = COUNT) -> pd.DataFrame:
    """Return rows of a behaviour: users ask in turn, an odd number of them."""
    send = BEHAVIOURS[behaviour]
    return rows([send(n, n % USERS) for n in range(count)])


@pytest.mark.parametrize("promise", MEANINGS)
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_policy_is_held_against_its_own_promise(promise: Promise, behaviour: str) -> None:
    """Each behaviour breaks the promises that it breaks, and no other; what breaks one says so with the policy."""
    routing = Routing(f"some {promise}", promise, PAIR)
    found = check_routing(sent(behaviour), routing)
    tokens = {name: Tokens(computed=float(count)) for name, count in found.requests.items()}
    idle = idle_is_fault(found.requests, promise)
    claimed = check_claim(Claim.DEVICE, Ledger(tokens, {}), idle_is_fault=idle).faults
    assert bool(found.faults or claimed) == (behaviour in BROKEN[promise])
    for line in found.faults:
        assert line.startswith(f"some {promise} promises that {MEANINGS[promise]}")
    assert f"some {promise} ({MEANINGS[promise]})" in found.line(routing)


@pytest.mark.parametrize("promise", ["user", "prefix"])
def test_an_idle_server_that_a_policy_may_bring_about_is_told(promise: Promise) -> None:
    """Where a policy may send all to one server that is no fault, and it is said that nothing was shared."""
    found = check_routing(sent("all to one"), Routing(f"some {promise}", promise, PAIR))
    assert found.faults == ()
    (line,) = found.unchecked
    assert line.startswith(f"vllm-1 answered not one request, which some {promise} may bring about")
    assert found.requests == {"vllm-0": COUNT, "vllm-1": 0}


@pytest.mark.parametrize(
    ("promise", "count", "fault"), [("random", 5, False), ("random", 40, True), ("turns", 2, True)]
)
def test_a_few_requests_may_all_go_to_one_server_by_chance(promise: Promise, count: int, fault: bool) -> None:
    """Chance may leave a server idle in a short run; turns may not."""
    assert idle_is_fault({"vllm-0": count, "vllm-1": 0}, promise) == fault


def test_requests_that_failed_are_no_broken_turns() -> None:
    """Every request of one server fails: the rows name no server, and turns are not called broken for that."""
    found = check_routing(rows(["vllm-0", ""] * 50), Routing("r", "turns", PAIR))
    assert found.faults == ()
    assert check_routing(rows([""] * 8), Routing("r", "turns", PAIR)).requests == {"vllm-0": 0, "vllm-1": 0}


def test_users_who_changed_servers_are_counted() -> None:
    """The facts have requests by server, users who asked again, and those of them who changed servers."""
    routing = Routing("nginx round_robin", "turns", PAIR)
    found = check_routing(rows(["vllm-0", "vllm-1", "vllm-0"] * 4, users=3), routing)
    assert (found.users, found.moved) == (3, 0)
    assert found.facts(routing) == {
        "balancer": "nginx round_robin",
        "promises": "turns",
        "requests": {"vllm-0": 8, "vllm-1": 4},
        "users": 3,
        "users_moved": 0,
        "expected_hits_follow": "the servers that answered",
    }


def test_the_clients_own_turns_are_known_to_the_request() -> None:
    """Without a balancer each request has its server beforehand; one that another server answered is a fault."""
    routing = Routing("none turns", "turns", PAIR, by_client=True)
    right = [PAIR[turn_of(n % USERS, 1 + n // USERS, 2)] for n in range(COUNT)]
    assert check_routing(rows(right), routing).faults == ()
    wrong = [*right[:-1], next(name for name in PAIR if name != right[-1])]
    (line,) = check_routing(rows(wrong), routing).faults
    assert line.startswith("1 requests were answered by another server than they were sent to (first: user 4 round 48")


@given(st.integers(-9, 10**6), st.integers(1, 99), st.integers(1, 9))
def test_the_client_takes_turns_by_user_and_round(user: int, number: int, servers: int) -> None:
    """A user goes to the next server with each question, and so do neighbours with the same question."""
    place = turn_of(user, number, servers)
    assert 0 <= place < servers
    assert turn_of(user, number + 1, servers) == turn_of(user + 1, number, servers) == (place + 1) % servers


WORKLOAD = MultiRoundQa(
    users=4, rounds=6, qps=2, shared_prompt_tokens=64, context_tokens=(400,), answer_tokens=16, duration_s=20
)
CACHES = Hierarchy(Claim.L2, block_tokens=16, device_blocks=40, chunk_tokens=64, l1_tokens=1e6, shared_tokens=64)


def run_of(send: Callable[[int, int], str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of the workload and the servers of its priming, sent as `send` says by user and count."""
    primed = [send(due.user, n) for n, due in enumerate(WORKLOAD.due(before=True))]
    found = []
    for n, due in enumerate(WORKLOAD.due(), start=len(primed)):
        row = RequestRecord(user=due.user, round=due.round, intended_start_s=due.at_s, status="ok")
        row.actual_start_s, row.server = due.at_s, send(due.user, n)
        row.prompt_tokens, row.generated_tokens = WORKLOAD.prompt_tokens(400, due.round), 16
        found.append(row)
    return to_frame(found), primed


def test_the_oracle_follows_users_who_stay() -> None:
    """With affinity no user changes servers: hits come from L1 and the device alone, in the priming too."""
    table, primed = run_of(lambda user, _: PAIR[user % 3 == 0])
    routing = Routing("haproxy hdr(x-user-id)", "user", PAIR, primed_on=tuple(primed))
    asks = oracle_requests(table, WORKLOAD, 400, 0, routing)
    assert [ask.server for ask in asks] == [PAIR[ask.user % 3 == 0] for ask in asks]
    expected = simulate(asks, CACHES)
    # What all prompts share is the only thing that a server has from another one.
    assert expected.total.l2 <= 64
    assert "no user changes servers" in expectable(expected, CACHES, asks).l2
    moving, turns = run_of(lambda _, n: PAIR[n % 2])
    alternating = oracle_requests(moving, WORKLOAD, 400, 0, Routing(primed_on=tuple(turns)))
    assert [ask.server for ask in alternating] == [PAIR[n % 2] for n in range(len(alternating))]


def test_without_a_note_the_priming_was_in_turn() -> None:
    """Rows of an older run do not say who answered the priming: it is taken to have been in turn, as it was."""
    table, primed = run_of(lambda _, n: PAIR[n % 2])
    assert oracle_requests(table, WORKLOAD, 400, 0) == oracle_requests(
        table, WORKLOAD, 400, 0, Routing(primed_on=tuple(primed))
    )
    unknown = ("", *primed[1:])
    assert oracle_requests(table, WORKLOAD, 400, 0, Routing(primed_on=unknown)) == oracle_requests(
        table, WORKLOAD, 400, 0
    )

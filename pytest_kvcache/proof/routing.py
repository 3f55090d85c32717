"""Hold the servers that answered against what the balancer's policy promises (pure).

A policy is held against its own promise, and no other: one that keeps each user on one server may give most requests to
one server, and one that takes turns may not. Requests that failed name no server, and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pytest_kvcache.config.balancer import MEANINGS, Promise
from pytest_kvcache.load.turns import turn_of

#: A promise that is kept by chance is called broken where it comes out so once in a million runs.
_DEVIATIONS, _CHANCE = 5.0, 1e-6
#: Share of the requests that turns may be off by, beside what is not known of failed ones.
_SLACK = 0.02
_LISTED = 3


@dataclass(frozen=True)
class Routing:
    """The balancer of a run, as the proof needs it.

    Args:
        label: Kind and policy, for people.
        promises: What the policy promises.
        servers: Names of the servers.
        by_client: Whether the client itself chose the servers, user and round together by turns.
        primed_on: Server that answered each request before the clock, in order; "" where one is not known.
    """

    label: str = "vllm-router round_robin"
    promises: Promise = "turns"
    servers: tuple[str, ...] = ()
    by_client: bool = False
    primed_on: tuple[str, ...] = ()


#: The balancer of runs from before there was a choice.
IN_TURN = Routing()


@dataclass(frozen=True)
class RoutingCheck:
    """Where the requests of a run went.

    Args:
        requests: Number of answered requests by server.
        users: Number of users with more than one answered request.
        moved: Number of those that were answered by more than one server.
        faults: Why the promise is broken, a line each.
        unchecked: What the policy leaves unproved, a line each.
    """

    requests: dict[str, int] = field(default_factory=dict)
    users: int = 0
    moved: int = 0
    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def facts(self, routing: Routing) -> dict[str, Any]:
        """Return the check for `run.json`."""
        return {
            "balancer": routing.label,
            "promises": routing.promises,
            "requests": self.requests,
            "users": self.users,
            "users_moved": self.moved,
            "expected_hits_follow": "the servers that answered",
        }

    def line(self, routing: Routing) -> str:
        """Return where requests went, for people."""
        counts = ", ".join(f"{name} {count}" for name, count in self.requests.items())
        users = f"{self.moved} of {self.users} users changed servers" if self.users else "no user asked twice"
        return (
            f"{routing.label} ({MEANINGS[routing.promises]}): {counts or 'no answer'}; {users}; expected hits follow "
            "the servers that answered"
        )


def check_routing(rows: pd.DataFrame, routing: Routing) -> RoutingCheck:
    """Return where the requests of a run went, and whether the policy kept its promise.

    Args:
        rows: Rows of the run, one for each request (`load.records`).
        routing: The balancer.
    """
    known = rows[rows["server"].ne("") & rows["prompt_tokens"].notna()]
    unknown = int(rows["actual_start_s"].notna().sum()) - len(known)
    counted = {str(name): int(count) for name, count in known["server"].value_counts().items()}
    names = sorted({*routing.servers, *counted})
    requests = {name: counted.get(name, 0) for name in names}
    by_user = known.groupby("user")["server"].agg(["count", "nunique"])
    again = by_user[by_user["count"] > 1]
    moved = again[again["nunique"] > 1]
    faults: list[str] = []
    unchecked: list[str] = []
    if len(names) > 1 and len(known):
        faults = _broken(known, requests, routing, moved=list(moved.index), users=len(again), unknown=unknown)
        if not faults and not idle_is_fault(requests, routing.promises):
            unchecked = _idle(requests, len(by_user), routing)
    return RoutingCheck(requests, len(again), len(moved), tuple(faults), tuple(unchecked))


def idle_is_fault(requests: dict[str, int], promise: Promise) -> bool:
    """Return whether a server without requests breaks a promise, and cannot come about by chance.

    Args:
        requests: Number of requests by server.
        promise: What the policy promises.
    """
    if promise in {"user", "prefix"}:
        return False
    count, servers = sum(requests.values()), len(requests)
    if promise == "turns":
        return count >= servers
    return servers * (1 - 1 / servers) ** count < _CHANCE if servers > 1 else False


def _broken(
    known: pd.DataFrame, requests: dict[str, int], routing: Routing, *, moved: list[int], users: int, unknown: int
) -> list[str]:
    counts = ", ".join(f"{name} {count}" for name, count in requests.items())
    if routing.by_client:
        return _not_as_sent(known, routing)
    if routing.promises == "user" and moved:
        first = ", ".join(str(user) for user in moved[:_LISTED])
        return [
            f"{routing.label} promises that {MEANINGS['user']}, and {len(moved)} of {users} users were answered by "
            f"more than one (first: {first}): a server was thought dead for a while, or requests name no user"
        ]
    count, mean = len(known), len(known) / len(requests)
    if routing.promises == "turns":
        room = 1 + unknown + _SLACK * count
    elif routing.promises == "random":
        room = 1 + unknown + _DEVIATIONS * math.sqrt(mean * (1 - 1 / len(requests)))
    else:
        return []
    # All idle but for some is told by the claim itself (`claims`), with the tokens.
    if not min(requests.values()) or max(abs(each - mean) for each in requests.values()) <= room:
        return []
    return [
        f"{routing.label} promises that {MEANINGS[routing.promises]}, and they answered {counts} requests: a server "
        "was thought dead for a while, or somebody else used the balancer"
    ]


def _not_as_sent(known: pd.DataFrame, routing: Routing) -> list[str]:
    """Return whether a request was answered by another server than the client sent it to."""
    wrong = [
        (user, number, server)
        for user, number, server in zip(known["user"], known["round"], known["server"], strict=True)
        if server != routing.servers[turn_of(int(user), int(number), len(routing.servers))]
    ]
    if not wrong:
        return []
    user, number, server = wrong[0]
    return [
        f"{len(wrong)} requests were answered by another server than they were sent to (first: user {user} round "
        f"{number}, by {server}): something between client and servers passes requests on"
    ]


def _idle(requests: dict[str, int], users: int, routing: Routing) -> list[str]:
    idle = [name for name, count in requests.items() if not count]
    if not idle:
        return []
    why = f"the keys of all {users} users belong to other servers" if routing.promises == "user" else "so it chose"
    return [
        f"{', '.join(idle)} answered not one request, which {routing.label} may bring about ({why}): what servers "
        "share was not asked for"
    ]


def primed_servers(routing: Routing, turn: Sequence[str], count: int) -> Iterable[str]:
    """Return the server of each request that was sent before the clock, in order.

    Where the load process did not note them, they were sent in turn, and the last of them went to the server before the
    one that answered the first measured request.

    Args:
        routing: With the servers that answered, where they are known.
        turn: Servers in the order in which they first answered a measured request.
        count: Number of requests before the clock.
    """
    noted = routing.primed_on if len(routing.primed_on) == count else ()
    return ((noted[i] if noted else "") or turn[(i - count) % len(turn)] for i in range(count))

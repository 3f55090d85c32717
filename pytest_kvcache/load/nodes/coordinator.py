"""Has load nodes send a load together: begins it on all of them at one time, and puts their rows on one clock."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.load.gathering import Gathering, Told
from pytest_kvcache.load.nodes import messages
from pytest_kvcache.load.nodes.channel import ChannelClosedError
from pytest_kvcache.load.nodes.link import NodeLink
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.workload.script import Script

#: Time that a node has to hand over its rows after the run was stopped (s); its load processes have 5 s.
_SAVE_S = 8.0
#: A node that says nothing for so long is given up (s).
_SILENT_S = 20.0
#: How often clocks are compared during a load (s), and by how many round trips.
_COMPARED_S, _FEW_TRIPS = 10.0, 16


@contextlib.contextmanager
def connected(addresses: Sequence[str], key: bytes, *, budget_s: float) -> Iterator[list[NodeLink]]:
    """Yield the connections to load nodes that could begin: same key, same code, clocks known well enough.

    Args:
        addresses: Each once.
        key: The secret that they know.
        budget_s: As well as this their clocks must be known.

    Raises:
        ConfigError: An address is none, or stands twice.
        RunError: One of them cannot send, and why.
    """
    if twice := next((each for each in addresses if list(addresses).count(each) > 1), None):
        raise ConfigError(f"{twice} is there twice", where="load nodes", todo="one agent sends one load at a time")
    links: list[NodeLink] = []
    try:
        for address in addresses:
            links.append(NodeLink(address, key))
            links[-1].know_clock(budget_s)
        yield links
    finally:
        for link in links:
            link.close()


def hand_out(links: Sequence[NodeLink], plan: LoadPlan, script: Script) -> None:
    """Give each node its share of the conversations, and return when all may begin.

    Raises:
        RunError: A node cannot send its share, and why.
    """
    for link, share in zip(links, messages.shares(plan, script, len(links)), strict=True):
        link.prepare(share)
    for link in links:
        link.ready()


class LoadNodes(Gathering):
    """Nodes that send, and what they say.

    Args:
        links: Of nodes that are ready.
        plan: The plan of the run.
        say: Prints a line.
    """

    def __init__(self, links: Sequence[NodeLink], plan: LoadPlan, say: Callable[[str], None]) -> None:
        super().__init__(plan, len(links), say, save_s=_SAVE_S)
        self._links = links
        self._kept: list[list[RequestRecord]] = [[] for _ in links]
        self._asked = False
        self._measured = threading.Event()
        self._watches = [
            threading.Thread(target=self._watch, args=(link,), name=f"clock {link.address}", daemon=True)
            for link in links
        ]

    def facts(self) -> list[dict[str, Any]]:
        """Return what a run keeps of each node, once the load is over."""
        return [
            {
                "address": link.address,
                "host": link.identity.get("host", ""),
                "python": link.identity.get("python", ""),
                "processors": link.identity.get("processors"),
                "workers": link.workers,
                "rows": len(rows),
                "clock": link.clock.facts(),
            }
            for link, rows in zip(self._links, self._kept, strict=True)
        ]

    def _put(self, number: int, said: object) -> None:
        self._said.put((number, said))

    def _tell_start(self) -> None:
        for number, link in enumerate(self._links):
            link.hear = functools.partial(self._put, number)
            if link.ended:  # gone before it could be heard
                self._put(number, None)
            link.begin(round(self._start_s * 1e9))
        for watch in self._watches:
            watch.start()

    def _ask_to_stop(self) -> None:
        self._asked = True  # and no more: a signal handler must not wait for a lock that it interrupted the holder of

    def _end_now(self) -> None:
        for number in self._open:
            self._links[number].hang_up()

    def _look(self) -> None:
        if self._asked:
            self._asked = False
            for number in list(self._open):
                self._links[number].stop()
        for number in list(self._open):
            link = self._links[number]
            if time.monotonic() - max(link.heard_s, self._start_s) > _SILENT_S:
                link.ended = link.ended or f"it said nothing for {_SILENT_S:g} s"
                link.hang_up()

    def _hear(self, number: int, said: object) -> None:
        if isinstance(said, Told):
            self._kept[number] += said.ended
        super()._hear(number, said)

    def _take(self, number: int, rows: list[RequestRecord]) -> None:
        link = self._links[number]
        self._kept[number] += rows
        self.at_once = self.at_once and link.at_once
        self.lost += [f"load node {link.address}: {each}" for each in link.lost]

    def _lose(self, number: int) -> None:
        link = self._links[number]
        self.lost.append(
            f"load node {link.address} was lost {time.monotonic() - self._start_s:.1f} s after the start "
            f"({link.ended or 'the connection was closed'}); {len(self._kept[number])} rows that it had handed over "
            "are kept, its other requests are not known"
        )

    def _watch(self, link: NodeLink) -> None:
        """Compare a node's clock every few seconds while the load goes on: a step shows between two readings."""
        with contextlib.suppress(ChannelClosedError):
            while not self._measured.wait(_COMPARED_S):
                link.compare(_FEW_TRIPS)

    def _over(self) -> None:
        """Compare the clocks again, and put all rows on ours."""
        self._measured.set()
        for watch in self._watches:
            watch.join()
        for link, rows in zip(self._links, self._kept, strict=True):
            try:
                link.compare()
            except ChannelClosedError:
                if not any(link.address in line for line in self.lost):
                    self.lost.append(f"load node {link.address} was gone before its clock was compared again")
            shift_s, scale = link.clock.onto_ours(node_start_ns=link.start_ns, our_start_ns=round(self._start_s * 1e9))
            self.rows += [on_our_clock(row, link.address, shift_s, scale) for row in rows]


def on_our_clock(row: RequestRecord, node: str, shift_s: float, scale: float) -> RequestRecord:
    """Return a row of a node with its times on the coordinator's clock.

    Its intended start stays: it is the schedule's, for all nodes the same.

    Args:
        row: As the node made it.
        node: The node's address.
        shift_s: What is added to each time, once it is scaled.
        scale: What each time is multiplied by.
    """

    def ours(at_s: float | None) -> float | None:
        return None if at_s is None else shift_s + scale * at_s

    return replace(
        row,
        node=node,
        due_s=ours(row.due_s),
        actual_start_s=ours(row.actual_start_s),
        first_token_s=ours(row.first_token_s),
        last_token_s=ours(row.last_token_s),
        token_times_s=[shift_s + scale * at_s for at_s in row.token_times_s],
    )

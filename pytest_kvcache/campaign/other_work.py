"""Whose work was done during a load, on this machine and on those of the servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from pytest_kvcache.runs.processes import Leader
from pytest_kvcache.serving.launchers.on_nodes import ServerNodes
from pytest_kvcache.telemetry import other_work
from pytest_kvcache.telemetry.other_work import OtherWork
from pytest_kvcache.telemetry.processes import Owned


@dataclass
class LoadWork:
    """What the processors did while a load ran; whole once the load is over.

    Args:
        here: On this machine, and on nodes that are this machine.
        nodes: On each other machine of servers, by its name.
    """

    here: OtherWork = field(default_factory=OtherWork)
    nodes: Mapping[str, OtherWork] = field(default_factory=dict)

    @property
    def own_s(self) -> float:
        """Processor time of the run on all machines (s); 0 where that of one is not known."""
        each = [self.here.own_s, *(found.own_s for found in self.nodes.values())]
        return sum(each) if all(each) else 0.0

    def suspicions(self, most: float) -> list[str]:
        """Return what makes the times of the load doubtful, a line each, with the node where it is not this machine.

        Args:
            most: Share of the processors of a machine that others, or the hypervisor, may take.
        """
        there = [f"node {name}: {line}" for name, found in self.nodes.items() for line in found.suspicions(most)]
        return [*self.here.suspicions(most), *there]

    def facts(self) -> dict[str, Any]:
        """Return it for `run.json`."""
        there = {name: asdict(found) for name, found in self.nodes.items()}
        return {"other_work": asdict(self.here) | ({"nodes": there} if there else {})}


@contextmanager
def watched(leaders: Callable[[], Iterable[Leader]], nodes: ServerNodes | None) -> Iterator[LoadWork]:
    """Look at all machines while the body runs; where it fails, at the nodes no longer.

    Args:
        leaders: Returns the leaders of the run's components on this machine at present.
        nodes: The other machines of servers, None where there are none to be watched.
    """
    found, owned = LoadWork(), Owned()
    if nodes is not None:
        owned = nodes.owned_here()
        nodes.watch_other_work()
    with other_work.watched(lambda: (*leaders(), *owned.leaders), owned.alone) as watch:
        yield found
    found.here = watch.found
    if nodes is not None:
        found.nodes = nodes.other_work()

"""What a launcher may offer whose servers run on other machines, so that these are watched as this one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from pytest_kvcache.serving.launchers.base import Launcher, Starter
from pytest_kvcache.telemetry.other_work import OtherWork
from pytest_kvcache.telemetry.processes import Owned


class ServerNode(Starter, Protocol):
    """A place on another machine, at which components are started and ended."""

    @property
    def name(self) -> str:
        """The machine, as outputs name it."""

    @property
    def place(self) -> str:
        """The place that components there have."""

    @property
    def python(self) -> Path:
        """An interpreter there that has this package."""

    def bring(self) -> None:
        """Bring what components there have written into their logs here, as far as the machine answers."""

    def clock_ahead_s(self) -> float:
        """Return the machine's CLOCK_MONOTONIC less this one's.

        Raises:
            KvCacheError: The machine does not answer.
        """

    def own_pids(self) -> frozenset[int]:
        """Return the numbers that the processes of the components have there.

        Raises:
            KvCacheError: The machine does not answer.
        """


class ServerNodes(Protocol):
    """All such places of one boot."""

    @property
    def each(self) -> Sequence[ServerNode]:
        """The places."""

    def owned_here(self) -> Owned:
        """Return the run's processes at places that turn out to be on this machine."""

    def watch_other_work(self) -> None:
        """Begin to look at whose work is done on the other machines; a machine that does not answer is no failure."""

    def other_work(self) -> Mapping[str, OtherWork]:
        """End that, and return what was found, by machine; why something is not known is a note of it."""


@runtime_checkable
class OnNodes(Protocol):
    """A launcher that offers it."""

    def server_nodes(self) -> ServerNodes:
        """Return the places of a pair that was planned."""


def nodes_of(launcher: Launcher) -> ServerNodes | None:
    """Return the other machines of a launcher's pair; None where it does not offer to watch any."""
    return launcher.server_nodes() if isinstance(launcher, OnNodes) else None

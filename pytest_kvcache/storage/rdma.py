"""RDMA links, what they have carried, and the RPC connections that use them, from sysfs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEVICES = Path("/sys/class/infiniband")
SWITCHES = Path("/sys/kernel/sunrpc/xprt-switches")
#: port_xmit_data and port_rcv_data count words of four bytes (InfiniBand architecture, PortCounters).
_WORD = 4
#: The largest payload of a packet; soft-RoCE counts packets only.
_LARGEST_PACKET = 4096
#: Where counters of 32 and of 64 bits stop.
_STUCK = frozenset({2**32 - 1, 2**64 - 1})


@dataclass(frozen=True)
class Link:
    """One port of an RDMA device.

    Args:
        device: Name of the device in the kernel (`mlx5_0`).
        port: Number of the port.
        state: `ACTIVE`, `DOWN`, …
        rate: As the kernel says it (`100 Gb/sec (4X EDR)`).
        layer: `InfiniBand` or `Ethernet` (RoCE).
        counters: Values in `counters/` and `hw_counters/`, by name.
    """

    device: str
    port: str
    state: str
    rate: str
    layer: str
    counters: Mapping[str, int]

    @property
    def is_active(self) -> bool:
        """Whether data can flow."""
        return self.state == "ACTIVE"

    def describe(self) -> str:
        """Return device, port, state, rate and layer in one line."""
        return f"{self.device}/{self.port} {self.state}, {self.rate or 'rate unknown'}, {self.layer or '?'}"


def links(devices: Path = DEVICES) -> list[Link]:
    """Return every port of every RDMA device, empty where there is none."""
    return [_link(port) for port in sorted(devices.glob("*/ports/*"))]


@dataclass(frozen=True)
class Carried:
    """What links moved.

    Args:
        bytes: The most bytes that all counting links can have moved, both ways.
        known: Whether every link counted on, so that nothing else moved: a counter of 32 bits sticks at its end
            (InfiniBand architecture, PortCounters), a reset of the device begins anew, and a link that came, went or
            does not count may have moved anything. Links that were down all the time moved nothing.
    """

    bytes: int
    known: bool


def carried(before: Sequence[Link], after: Sequence[Link]) -> Carried | None:
    """Return what all links moved between two readings; None if none counts.

    Devices count bytes; soft-RoCE counts packets, each of which is taken for a full one. The result is an upper bound:
    other programs may use the links too, and a loop-back packet is counted as sent and as received.
    """
    earlier = {(link.device, link.port): link for link in before}
    later = {(link.device, link.port): link for link in after}
    total, counted, known = 0, False, True
    for key in sorted(earlier.keys() | later.keys()):
        old, new = earlier.get(key), later.get(key)
        pairs, unit = _pairs(old, new) if old and new else ([], 0)
        sound = [(first, last) for first, last in pairs if 0 <= first <= last and last not in _STUCK]
        total += sum(last - first for first, last in sound) * unit
        counted = counted or bool(sound) or any(min(pair) >= 0 for pair in pairs)
        if pairs or any(link is not None and link.is_active for link in (old, new)):
            known = known and bool(pairs) and len(sound) == len(pairs)
    return Carried(total, known) if counted else None


def _pairs(old: Link, new: Link) -> tuple[list[tuple[int, int]], int]:
    """Return a link's counters of data before and after, and the bytes for each count; none if it does not count.

    A counter that only one of the readings has is -1 in the other.
    """
    for names, unit in (
        (("port_xmit_data", "port_rcv_data"), _WORD),
        (("sent_pkts", "rcvd_pkts"), _LARGEST_PACKET),
    ):
        there = [n for n in names if n in old.counters or n in new.counters]
        if there:
            return [(old.counters.get(n, -1), new.counters.get(n, -1)) for n in there], unit
    return [], 0


def rpc_connections(switches: Path = SWITCHES) -> list[tuple[str, str]]:
    """Return kind (`rdma`, `tcp`) and address of every RPC connection of the kernel, of pNFS data servers too.

    Kernels from 5.14 on show the connections; on older ones, or without /sys, the list is empty.
    """
    found = set()
    for folder in switches.glob("switch-*/xprt-*-*"):
        # A connection may end between the listing and the reading; one that is being made anew says `<closed>`.
        address = _read(folder / "dstaddr")
        if address and not address.startswith("<"):
            found.add((folder.name.rpartition("-")[2], address))
    return sorted(found)


def _link(port: Path) -> Link:
    counters = {}
    for folder in ("counters", "hw_counters"):
        for file in sorted((port / folder).glob("*")):
            text = _read(file)
            if text.isascii() and text.isdigit():
                counters[file.name] = int(text)
    return Link(
        device=port.parent.parent.name,
        port=port.name,
        state=_read(port / "state").partition(":")[2].strip() or "unknown",
        rate=_read(port / "rate"),
        layer=_read(port / "link_layer"),
        counters=counters,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        # A virtual function refuses some counters.
        return ""

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
        known: Whether every link with counters counted on: a counter of 32 bits sticks at its end (InfiniBand
            architecture, PortCounters), and a reset of the device begins anew.
    """

    bytes: int
    known: bool


def carried(before: Sequence[Link], after: Sequence[Link]) -> Carried | None:
    """Return what all links moved between two readings; None if none counts.

    Devices count bytes; soft-RoCE counts packets, each of which is taken for a full one. The result is an upper bound:
    other programs may use the links too, and a loop-back packet is counted as sent and as received.
    """
    earlier = {(link.device, link.port): link for link in before}
    total, counted, known = 0, False, True
    for link in after:
        old = earlier.get((link.device, link.port))
        if old is None:
            continue
        for names, unit in (
            (("port_xmit_data", "port_rcv_data"), _WORD),
            (("sent_pkts", "rcvd_pkts"), _LARGEST_PACKET),
        ):
            pairs = [(old.counters[n], link.counters[n]) for n in names if n in link.counters and n in old.counters]
            if not pairs:
                continue
            counted = True
            sound = [(first, last) for first, last in pairs if first <= last and last not in _STUCK]
            known = known and len(sound) == len(pairs)
            total += sum(last - first for first, last in sound) * unit
            break
    return Carried(total, known) if counted else None


def rpc_connections(switches: Path = SWITCHES) -> list[tuple[str, str]]:
    """Return kind (`rdma`, `tcp`) and address of every RPC connection of the kernel, of pNFS data servers too.

    Kernels from 5.14 on show the connections; on older ones, or without /sys, the list is empty.
    """
    found = set()
    for folder in switches.glob("switch-*/xprt-*-*"):
        address = folder / "dstaddr"
        if address.is_file():
            found.add((folder.name.rpartition("-")[2], address.read_text(encoding="utf-8").strip()))
    return sorted(found)


def _link(port: Path) -> Link:
    counters = {}
    for folder in ("counters", "hw_counters"):
        for file in sorted((port / folder).glob("*")):
            text = _read(file)
            if text.isdigit():
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
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        # A virtual function refuses some counters.
        return ""

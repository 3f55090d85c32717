"""Makes the guest's storage link slow or lossy, and shows what `doctor --bench` makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lab.pnfs import doctor
from lab.pnfs.lab import LABEL, Lab
from lab.pnfs.settings import CLIENT_DEVICE, SERVER_DEVICE


@dataclass(frozen=True)
class Impairment:
    """What a link is made to do.

    Args:
        name: For people.
        netem: Arguments of `tc qdisc … netem`, of the server's end and of the client's.
    """

    name: str
    netem: tuple[str, str]


#: A delay is added on the server's end alone, so that a round trip takes that much longer. Loss and rate are of both.
ALL = (
    Impairment("none", ("", "")),
    Impairment("1 ms of delay", ("delay 1ms", "")),
    Impairment("10 ms of delay", ("delay 10ms", "")),
    Impairment("1 % of loss", ("loss 1%", "loss 1%")),
    Impairment("20 MB/s", ("rate 160mbit", "rate 160mbit")),
)
_DEVICES = (SERVER_DEVICE, CLIENT_DEVICE)
#: Packets that a queue holds: netem's own 1,000 would drop what waits for 10 ms.
_LIMIT = 20000


def impair(lab: Lab, impairment: Impairment) -> None:
    """Have the storage link be slow or lossy from now on.

    Raises:
        RunError: The guest's kernel refuses.
    """
    for device, netem in zip(_DEVICES, impairment.netem, strict=True):
        lab.guest.shell(f"tc qdisc del dev {device} root 2>/dev/null || true")
        if netem:
            lab.guest.shell(f"tc qdisc add dev {device} root netem limit {_LIMIT} {netem}")


def all_of_them(lab: Lab, say: Callable[[str], None], *, bench: bool) -> int:
    """Print what the doctor finds under each impairment, as a table; return 1 where a check failed."""
    failed = False
    lines = [f"| link ({LABEL}) | check | status | found |", "|---|---|---|---|"]
    for impairment in ALL:
        impair(lab, impairment)
        for result in doctor.findings(lab, lab.mounts[0], bench=bench):
            if result.name in {"writable", "layouts", "LMCache's adapter"}:
                failed = failed or result.finding.status == "fail"
                lines.append(
                    f"| {impairment.name} | {result.name} | {result.finding.status} | {result.finding.found} |"
                )
                say(f"{impairment.name}: {result.name}: {result.finding.status}: {result.finding.found}")
    impair(lab, ALL[0])
    for line in lines:
        say(line)
    return int(failed)

"""What servers of other machines and this one tell each other beside requests, by TLS with a certificate for the boot.

LMCache trusts the system's certificates alone, and vLLM's events of blocks know neither keys nor TLS. So relays stand
beside them (`tls_relay.py`), and both find on their own machine what they would find there if there were only one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pytest_kvcache.endpoint.address import bracketed
from pytest_kvcache.errors import SetupError
from pytest_kvcache.redaction import hide
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.nodes.tls_relay import KEY, TLS
from pytest_kvcache.serving.offload import Reach, TierPlan
from pytest_kvcache.serving.places import LOOPBACK, Place
from pytest_kvcache.serving.plan import ServingPlan
from pytest_kvcache.serving.relays import events_name, relay

_CERTIFICATE, _KEY = "certificate.pem", "key.pem"
_MAKE_S = 30.0
#: A boot's certificate is thrown away with its run (days).
_DAYS = 7


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, made for one boot.

    Args:
        folder: Folder of the files, closed to other users.
        text: The certificate (PEM).
        key: The private key (PEM).
    """

    folder: Path
    text: str
    key: str = field(repr=False)


def new_certificate(scratch: Path, addresses: Sequence[str]) -> Certificate:
    """Make a certificate that vouches for itself.

    Args:
        scratch: Folder that is removed when the run ends.
        addresses: IP addresses of all machines on which it is shown.

    Raises:
        SetupError: There is no `openssl`, or it cannot make one.
    """
    todo = "install OpenSSL 1.1.1 or newer (Debian: apt install openssl)"
    program = shutil.which("openssl")
    if program is None:
        raise SetupError("openssl, which makes the certificate for a boot, is not there", where="PATH", todo=todo)
    folder = Path(tempfile.mkdtemp(prefix="tls-", dir=scratch))
    names = ",".join(f"IP:{address}" for address in dict.fromkeys(addresses))
    # Whoever has the key may speak for these addresses, and sign nothing.
    extensions = ("basicConstraints=critical,CA:FALSE", f"subjectAltName={names}")
    done = subprocess.run(
        [
            program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", str(_DAYS), "-subj", "/CN=pytest-kvcache",
            *(word for extension in extensions for word in ("-addext", extension)),
            "-config", "/dev/stdin", "-keyout", _KEY, "-out", _CERTIFICATE,
        ],
        input="[req]\ndistinguished_name=name\n[name]\n",
        cwd=folder, umask=0o077, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=_MAKE_S,
    )  # fmt: skip
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason is told"])[-1]
        raise SetupError(f"cannot make a certificate: {said}", where=program, todo=todo)
    key = (folder / _KEY).read_text(encoding="ascii")
    hide(key)
    return Certificate(folder, (folder / _CERTIFICATE).read_text(encoding="ascii"), key)


@dataclass(frozen=True)
class Ways:
    """The ways by TLS between this machine and those of a boot's servers; nothing is made where none is needed.

    Args:
        here: This machine, on loopback.
        outward: This machine, with its address within the cluster.
        machine: Its name in outputs.
        places: Where each server runs.
        python: Interpreter at each of them.
    """

    here: Place
    outward: Place
    machine: str
    places: Sequence[Place]
    python: Sequence[Path]

    @cached_property
    def shown(self) -> Certificate:
        """Certificate of the boot, made when it is first asked for."""
        return new_certificate(self.here.scratch, [place.host for place in (self.outward, *self.places)])

    def to_storage(self, tier: TierPlan) -> TierPlan:
        """Return the plan of a tier whose storage on this machine all servers reach, where it can be reached.

        Raises:
            SetupError: There is no certificate to be had.
        """
        if tier.reached is None:
            return tier
        address, doors = _address(self.outward), tuple(f"{LOOPBACK}:{place.port()}" for place in self.places)
        folder = self.shown.folder
        found = tier.reached(Reach(self.machine, address, folder / _CERTIFICATE, folder / _KEY, doors))
        relays = [
            relay(
                f"storage-{index}",
                place,
                str(self.python[index]),
                listen=door,
                connect=f"{TLS}{address}",
                stage="storage",
                certificate=self.shown.text,
            )
            for index, (door, place) in enumerate(zip(doors, self.places, strict=True))
        ]
        return replace(found, storage=(*found.storage, *relays))

    def to_balancer(self, plan: ServingPlan) -> ServingPlan:
        """Return the plan in which what servers tell the balancer of their blocks is carried to it from their machines.

        Raises:
            SetupError: There is no certificate to be had.
        """
        if not plan.events:
            return plan
        carried: list[Component] = []
        for index, (each, place) in enumerate(zip(plan.events, self.places, strict=True)):
            name, address, socket = events_name(index), f"{TLS}{_address(place)}", str(place.scratch / each.socket)
            shown, secret = self.shown.text, {KEY: self.shown.key}
            carried += [
                relay(
                    name, place, str(self.python[index]),
                    listen=address, connect=socket, certificate=shown, secret=secret,
                ),
                relay(
                    f"{name}-here", self.here, sys.executable,
                    listen=each.door, connect=address, certificate=shown, secret=secret,
                ),
            ]  # fmt: skip
        # On one machine a relay of the same name would connect to the server's socket itself.
        names = {each.name for each in carried}
        return replace(plan, components=(*(each for each in plan.components if each.name not in names), *carried))


def _address(place: Place) -> str:
    return f"{bracketed(place.host)}:{place.port()}"

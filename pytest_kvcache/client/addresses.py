"""The address of a name on which somebody listens, as the system resolves it."""

from __future__ import annotations

import contextlib
import socket
from typing import NamedTuple, cast

#: An address on which nobody answers for so long is passed over where the name has another one (s).
_ANSWERS_S = 2.0


#: As `connect` takes it.
Place = tuple[str, int] | tuple[str, int, int, int]


class Address(NamedTuple):
    """Where a socket connects to.

    Args:
        family: `AF_INET` or `AF_INET6`.
        place: Address and port, for IPv6 also flow and zone (the interface of a link-local address).
    """

    family: int
    place: Place


def answering(host: str, port: int) -> Address:
    """Return the first of a host's addresses on which somebody listens; the first of all where nobody does.

    A name may have several: `localhost` is often ::1 before 127.0.0.1, and a server listens on one of them.

    Args:
        host: Name or address; a link-local address may have its zone behind a `%`.
        port: TCP port.

    Raises:
        OSError: The name has no address.
    """
    found = [
        Address(int(family), cast("Place", place))
        for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if family in {socket.AF_INET, socket.AF_INET6}
    ]
    if not found:
        raise OSError("the name has no address of IPv4 or IPv6")
    for address in found if len(found) > 1 else ():
        with contextlib.suppress(OSError), socket.socket(address.family, socket.SOCK_STREAM) as sock:
            sock.settimeout(_ANSWERS_S)
            sock.connect(address.place)
            return address
    return found[0]

"""Carries the connections of a port or socket to another one, byte by byte; from machine to machine by TLS.

The program is sent to the machines on which it runs, as text, and so imports nothing but the standard library. An end
without TLS is on loopback or a Unix socket of a machine; one that is TLS is on the cluster. Both ends of TLS know one
certificate, which was made for the boot, and trust no other one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import ssl
from collections.abc import Sequence
from pathlib import Path

#: Variable with the private key of the certificate (PEM), for an end that must show that it belongs to the boot.
KEY = "KVCACHE_RELAY_KEY"
#: Beginning of the address of an end that is TLS; the other one is HOST:PORT on loopback or the path of a Unix socket.
TLS = "tls://"
#: The most that is read at once (bytes), and the limit for a connection to stand (s).
_PIECE, _STANDS_S = 1 << 20, 10.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def tls(certificate: str, key: str = "", *, server: bool = False) -> ssl.SSLContext:
    """Return settings that trust one certificate alone.

    Args:
        certificate: The certificate (PEM).
        key: Its private key (PEM), "" for a client that need not show that it belongs to the boot.
        server: Whether to listen; who connects must then have the key too.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=certificate)
    if key:
        # OpenSSL takes keys from files only: this one is in memory, and no other process sees it.
        with os.fdopen(os.memfd_create("key"), "wb") as file:
            file.write(f"{certificate}\n{key}".encode())
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


class Relay:
    """One end of a way.

    Args:
        listen: HOST:PORT, or the path of a Unix socket.
        connect: HOST:PORT, or the path of a Unix socket, to which every connection is carried.
        inward: Settings of TLS where connections come in by TLS.
        outward: Settings of TLS where connections go out by TLS.
    """

    def __init__(
        self, listen: str, connect: str, *, inward: ssl.SSLContext | None = None, outward: ssl.SSLContext | None = None
    ) -> None:
        self._listen, self._connect = listen, connect
        self._inward, self._outward = inward, outward
        self._said = ""

    async def start(self) -> asyncio.Server:
        """Listen, and carry each connection until one side ends it."""
        if "/" in self._listen:
            return await asyncio.start_unix_server(self._carry, self._listen, ssl=self._inward, limit=_PIECE)
        host, port = _where(self._listen)
        return await asyncio.start_server(self._carry, host, port, ssl=self._inward, limit=_PIECE)

    async def dial(self) -> Streams:
        """Connect with the other end.

        Raises:
            OSError: It does not answer, or has another certificate.
        """
        if "/" in self._connect:
            return await asyncio.open_unix_connection(self._connect, limit=_PIECE)
        host, port = _where(self._connect)
        async with asyncio.timeout(_STANDS_S):
            return await asyncio.open_connection(host, port, ssl=self._outward, limit=_PIECE)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a request over HTTP with 200 where the other end can be reached, with 503 where not."""
        status = "503 Service Unavailable"
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            if streams := await self._reached():
                status = "200 OK"
                streams[1].close()
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()

    async def _reached(self) -> Streams | None:
        try:
            return await self.dial()
        except OSError as error:
            said = f"{self._connect} cannot be reached: {error or type(error).__name__}"
            if said != self._said:  # clients try again and again
                print(said, flush=True)
            self._said = said
            return None

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (streams := await self._reached()) is None:
            writer.close()
            return
        await asyncio.gather(_pump(reader, streams[1]), _pump(streams[0], writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes one way; the end of it ends both ways, since TLS here closes no half."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
    writer.close()


def _where(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


async def serve(relay: Relay, health: str) -> None:
    """Carry connections, and tell at another address whether the way stands, until the process is ended."""
    async with await relay.start() as carrying, await asyncio.start_server(relay.answer, *_where(health)):
        await carrying.serve_forever()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--connect", required=True)
    parser.add_argument("--certificate", type=Path, help="of both ends, where one is TLS")
    parser.add_argument("--health", required=True)
    args = parser.parse_args(argv)
    certificate = args.certificate.read_text(encoding="ascii") if args.certificate else ""
    key = os.environ.pop(KEY, "")
    inward = tls(certificate, key, server=True) if args.listen.startswith(TLS) else None
    outward = tls(certificate, key) if args.connect.startswith(TLS) else None
    ends = (each.removeprefix(TLS) for each in (args.listen, args.connect))
    asyncio.run(serve(Relay(*ends, inward=inward, outward=outward), args.health))


if __name__ == "__main__":
    main()

"""Ways by TLS between machines: what they carry, whom they refuse, and when they say that they stand."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pytest_kvcache.errors import SetupError
from pytest_kvcache.redaction import redacted
from pytest_kvcache.serving.nodes import by_tls
from pytest_kvcache.serving.nodes.by_tls import Certificate, new_certificate
from pytest_kvcache.serving.nodes.tls_relay import Relay, tls

Asks = Callable[[str], Awaitable[bytes]]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Certificate]:
    """The certificate of a boot, and that of another one for the same addresses."""
    folder = tmp_path_factory.mktemp("tls")
    return new_certificate(folder, ["127.0.0.1", "127.0.0.1", "fd00::1"]), new_certificate(folder, ["127.0.0.1"])


def port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with what was sent, as it comes, and say goodbye at the end of a line."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
        if data.endswith(b"\n"):
            break
    writer.close()


async def said_by(path: str, data: bytes) -> bytes:
    """Return what comes back for data that is sent to a Unix socket or a port, until the connection ends."""
    opened = asyncio.open_unix_connection(path) if "/" in path else asyncio.open_connection(*path.split(":"))
    reader, writer = await opened
    writer.write(data)
    answer, _ = await asyncio.gather(reader.read(), writer.drain())
    writer.close()
    return answer


@pytest.mark.parametrize("size", [1, 1 << 10, (1 << 20) + 1, 5 << 20])
def test_bytes_are_carried_as_they_are(
    certificates: tuple[Certificate, Certificate], tmp_path: Path, size: int
) -> None:
    """Over a socket, TLS and another socket every byte comes and goes unchanged, several connections side by side."""
    shown, _ = certificates
    address = f"127.0.0.1:{port()}"
    there, here = str(tmp_path / "there"), str(tmp_path / "here")
    texts = [bytes([65 + n]) * size + b"\n" for n in range(3)]

    async def session() -> list[bytes]:
        far = Relay(address, there, inward=tls(shown.text, shown.key, server=True))
        near = Relay(here, address, outward=tls(shown.text, shown.key))
        async with await asyncio.start_unix_server(echo, there), await far.start(), await near.start():
            return await asyncio.gather(*(said_by(here, text) for text in texts))

    assert asyncio.run(session()) == texts


def test_only_who_belongs_to_the_boot_is_trusted(
    certificates: tuple[Certificate, Certificate], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server with another certificate is sent nothing, a client without the key is told nothing; the log has why."""
    shown, other = certificates
    there = str(tmp_path / "there")
    ways = {
        "alike": (shown, tls(shown.text, shown.key)),
        "another server": (other, tls(shown.text, shown.key)),
        "a client without a key": (shown, tls(shown.text)),
        "a client of another boot": (shown, _stranger(shown, other)),
    }

    async def ask(server: Certificate, client: ssl.SSLContext, name: str) -> bytes:
        address, here = f"127.0.0.1:{port()}", str(tmp_path / name)
        far = Relay(address, there, inward=tls(server.text, server.key, server=True))
        near = Relay(here, address, outward=client)
        async with await far.start(), await near.start():
            return await said_by(here, b"prompt\n")

    async def session() -> dict[str, bytes]:
        async with await asyncio.start_unix_server(echo, there):
            return {name: await ask(*way, name.replace(" ", "-")) for name, way in ways.items()}

    assert asyncio.run(session()) == {name: b"prompt\n" if name == "alike" else b"" for name in ways}
    assert "certificate verify failed" in capfd.readouterr().out


def _stranger(shown: Certificate, other: Certificate) -> ssl.SSLContext:
    """Return a client that trusts the boot's certificate, and shows another one."""
    context = tls(other.text, other.key)
    context.load_verify_locations(cadata=shown.text)
    return context


def test_a_way_stands_once_its_other_end_answers(
    certificates: tuple[Certificate, Certificate], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The health is 503 until the other end can be reached, then 200; the reason is told once, not each time."""
    shown, _ = certificates
    address, there = f"127.0.0.1:{port()}", str(tmp_path / "there")
    health = f"127.0.0.1:{port()}"
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

    async def session() -> list[bytes]:
        relay = Relay("127.0.0.1:1", address, outward=tls(shown.text, shown.key))
        async with await asyncio.start_server(relay.answer, *health.split(":")):
            found = [await said_by(health, request) for _ in range(2)]
            far = Relay(address, there, inward=tls(shown.text, shown.key, server=True))
            async with await far.start():
                return [*found, await said_by(health, request)]

    assert [answer.split()[1] for answer in asyncio.run(session())] == [b"503", b"503", b"200"]
    assert capfd.readouterr().out.count(f"{address} cannot be reached") == 1


def test_a_certificate_is_of_one_boot(certificates: tuple[Certificate, Certificate]) -> None:
    """Its files are closed to other users, no two have one key, and no output shows the key."""
    shown, other = certificates
    assert {path.stat().st_mode & 0o777 for path in shown.folder.iterdir()} == {0o600}
    assert shown.folder.stat().st_mode & 0o777 == 0o700
    assert shown.key != other.key
    assert shown.key not in repr(shown)
    assert shown.key not in redacted(f"cat: {shown.key}")


def test_a_machine_without_openssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the program and what to install; one that fails is told with its own words."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="openssl, which makes the certificate for a boot, is not there"):
        by_tls.new_certificate(tmp_path, ["127.0.0.1"])
    program = tmp_path / "openssl"
    program.write_text("#!/bin/sh\necho unknown option -addext >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(SetupError, match="cannot make a certificate: unknown option -addext"):
        by_tls.new_certificate(tmp_path, ["127.0.0.1"])

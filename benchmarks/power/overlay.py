"""Engine environments that are worse on purpose: the real programs behind small shims, for injected slowdowns.

An overlay is a folder whose `bin/` starts the programs of a real engine environment, one of them changed: a router that
talks to its servers through a delaying proxy, a vLLM that loses its KV connector, an S3 server with a bandwidth cap.
Nothing of the plugin knows about it: `--kv-engine` names the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_PROGRAMS = ("python", "lmcache", "vllm-router", "rclone")


def make(
    folder: Path,
    engine: Path,
    *,
    delay_s: float = 0.0,
    off: bool = False,
    bwlimit: str = "",
    before: Mapping[str, str] | None = None,
) -> Path:
    """Write an overlay of `engine` and return it.

    Args:
        folder: Where.
        engine: The real environment.
        delay_s: Each request reaches its server this much later (TTFT grows by as much).
        off: vLLM loses `--kv-transfer-config`: the tier is configured and does nothing.
        bwlimit: Of the S3 server, as rclone takes it.
        before: Words of the shell that stand before a program of that name.
    """
    programs = folder / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    real = engine / "bin"
    me = f"{sys.executable} {Path(__file__).absolute()}"
    for name in _PROGRAMS:
        command = f'exec {(before or {}).get(name, "")} {real / name} "$@"'
        if name == "vllm-router" and delay_s:
            command = f'exec {me} router {delay_s} {real / name} "$@"'
        elif name == "python" and off:
            command = f'exec {me} off {real / name} "$@"'
        elif name == "rclone" and bwlimit:
            command = f'exec {real / name} "$@" --bwlimit {bwlimit}'
        path = programs / name
        path.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
        path.chmod(0o755)
    return folder


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay_s: float) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(1 << 20):
            if delay_s:
                await asyncio.sleep(delay_s)
            sink.write(data)
            await sink.drain()
    with contextlib.suppress(ConnectionError, RuntimeError):
        sink.close()


async def _proxies(targets: list[tuple[str, int]], delay_s: float, started: asyncio.Future[list[int]]) -> None:
    """Serve a proxy for each target; requests are delayed, answers are not."""
    ports = []
    servers = []
    for host, port in targets:

        async def connected(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str = host, port: int = port
        ) -> None:
            up_reader, up_writer = await asyncio.open_connection(host, port)
            await asyncio.gather(_pump(reader, up_writer, delay_s), _pump(up_reader, writer, 0.0))

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        servers.append(server)
        ports.append(server.sockets[0].getsockname()[1])
    started.set_result(ports)
    await asyncio.gather(*(server.serve_forever() for server in servers))


async def _router(delay_s: float, argv: list[str]) -> int:
    urls = [word for word in argv if word.startswith("http://127.0.0.1:")]
    targets = [("127.0.0.1", int(url.rsplit(":", 1)[1])) for url in urls]
    started: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(_proxies(targets, delay_s, started))
    ports = await started
    moved = {url: f"http://127.0.0.1:{port}" for url, port in zip(urls, ports, strict=True)}
    process = await asyncio.create_subprocess_exec(*[moved.get(word, word) for word in argv])
    code = await process.wait()
    serving.cancel()
    return code


def main(argv: list[str]) -> None:
    """Be a shim."""
    if argv[0] == "router":
        sys.exit(asyncio.run(_router(float(argv[1]), argv[2:])))
    words = argv[1:]
    if "--kv-transfer-config" in words:
        at = words.index("--kv-transfer-config")
        words = words[:at] + words[at + 2 :]
    os.execv(words[0], words)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])

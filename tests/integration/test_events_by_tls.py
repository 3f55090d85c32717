"""Events of blocks through relays by TLS, with the ZeroMQ that vLLM has; no server is booted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pytest_kvcache.runs.ports import free_ports
from pytest_kvcache.serving.nodes import tls_relay
from pytest_kvcache.serving.nodes.by_tls import new_certificate

#: A publisher that binds as vLLM does, to a socket; a subscriber that connects as vllm-router does, to a port.
_ZMQ = """
import sys, time, zmq
context = zmq.Context()
publisher, subscriber = context.socket(zmq.PUB), context.socket(zmq.SUB)
publisher.bind(f"ipc://{sys.argv[1]}")
subscriber.connect(f"tcp://{sys.argv[2]}")
subscriber.setsockopt(zmq.SUBSCRIBE, b"")
large, until = bytes(3 << 20), time.monotonic() + 60
while not subscriber.poll(50) and time.monotonic() < until:
    publisher.send_multipart([b"", (0).to_bytes(8, "big"), large])
print(subscriber.recv_multipart(zmq.NOBLOCK) == [b"", (0).to_bytes(8, "big"), large])
"""


def test_a_router_hears_a_server_on_another_machine(real_engine: Path, tmp_path: Path) -> None:
    """What a server publishes on its socket, whole and of several megabytes, is heard on the router's port."""
    shown = new_certificate(tmp_path, ["127.0.0.1"])
    port, door, *health = free_ports(4)
    there, here = str(tmp_path / "there"), f"127.0.0.1:{door}"
    address, trusted = f"tls://127.0.0.1:{port}", ("--certificate", str(shown.folder / "certificate.pem"))
    ways = [("--listen", address, "--connect", there), ("--listen", here, "--connect", address)]
    relays = [
        subprocess.Popen(
            [sys.executable, "-I", tls_relay.__file__, *way, *trusted, "--health", f"127.0.0.1:{own}"],
            env={**os.environ, tls_relay.KEY: shown.key},
        )
        for way, own in zip(ways, health, strict=True)
    ]
    try:
        argv = [str(real_engine / "bin" / "python"), "-c", _ZMQ, there, here]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
        assert (done.stdout.strip(), done.stderr) == ("True", "")
    finally:
        for relay in relays:
            relay.terminate()
            relay.wait(60)

"""How true are a client's times? Our client and the common ones against a server that knows when it sent each chunk.

    python -m benchmarks.client.run [--rates 2 50 200 500] [--seconds 8] [--limit 10] [--clients wire …] [--busy]

A small C server, built on the spot, streams 100 chunks a request, the first after 20 ms and the others 10 ms apart,
each carrying its own send time on the clock that clients use too. A client's TTFT error is what it reads less what the
server did, (first token stamp - send stamp) - (first token sent - request arrived), without its sign. Every client is
one process that sends at the same absolute times; ours (`wire`) is two from 500 requests/s on. A client that falls
behind is cut off, and its row says how many requests were over. `exact` and `compat` are the plugin's load processes
with all that they do in a run, as many as a run would have; their error is the `residual_s` of their rows. `node`
is `exact` sent by a load node of this machine. Needs a C compiler, and the extra `bench` for the clients that are not
ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from pytest_kvcache.runs.ports import PortLeases

HERE = Path(__file__).parent
CHUNKS, FIRST_US, GAP_US = 100, 20_000, 10_000
CLIENTS = ("wire", "exact", "compat", "node", "aiohttp-uvloop", "aiohttp", "httpx", "openai")


def build(folder: Path) -> Path:
    """Compile the server."""
    program = folder / "stub"
    subprocess.run(["cc", "-O2", "-o", str(program), str(HERE / "stub.c")], check=True)
    return program


def measure(
    program: Path, client: str, *, rate: float, seconds: float, workers: int, limit_s: float, ports: PortLeases
) -> dict[str, object]:
    """Run one client at one rate and return its row."""
    port = ports.take()
    server = subprocess.Popen([str(program), str(port), str(CHUNKS), str(FIRST_US), str(GAP_US)])
    try:
        time.sleep(0.3)
        start = time.monotonic() + 1.5
        arguments = [client, str(port), str(rate), str(seconds), str(start)]
        command = [sys.executable, "-m", "benchmarks.client.clients", *arguments]
        load = [
            subprocess.Popen(
                [*command, str(worker), str(workers), str(limit_s)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what a client says that is cut off
                text=True,
            )
            for worker in range(workers)
        ]
        parts = [json.loads(process.communicate(timeout=seconds + limit_s + 120)[0]) for process in load]
    finally:
        server.terminate()
        server.wait()
    rows = pd.DataFrame(
        [row for part in parts for row in part["rows"]], columns=["ttft_error_ms", "itl_error_ms", "late_ms"]
    )
    cpu_s = sum(part["cpu_s"] for part in parts)
    errors = rows["ttft_error_ms"].abs()
    return {
        "client": f"{client} x{workers}" if workers > 1 else client,
        "req/s": f"{rate:g}",
        "TTFT error p50 ms": round(errors.quantile(0.5), 3),
        "p99": round(errors.quantile(0.99), 3),
        "max": round(errors.max(), 3),
        "ITL error p99 ms": round(rows["itl_error_ms"].quantile(0.99), 3)
        if rows["itl_error_ms"].notna().any()
        else "-",
        "send late p99 ms": round(rows["late_ms"].quantile(0.99), 3),
        "CPU ms/1000 chunks": round(1e6 * cpu_s / (len(rows) * CHUNKS), 1) if len(rows) else None,
        "over/due": f"{len(rows)}/{sum(part['due'] for part in parts)}",
    }


def main() -> None:
    """Measure every client at every rate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[2, 50, 200, 500])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--clients", nargs="+", default=list(CLIENTS), choices=CLIENTS)
    parser.add_argument("--limit", type=float, default=10, help="seconds after the last request is due to cut off")
    parser.add_argument("--busy", action="store_true", help="with a busy loop on every core beside it")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        ports = PortLeases(Path(folder) / "ports")
        count = len(os.sched_getaffinity(0)) if args.busy else 0
        hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        try:
            for rate in args.rates:
                for client in args.clients:
                    workers = 2 if client == "wire" and rate >= 500 else 1
                    rows.append(
                        measure(
                            program,
                            client,
                            rate=rate,
                            seconds=max(args.seconds, 40 / rate),  # some requests at the lowest rate too
                            workers=workers,
                            limit_s=args.limit,
                            ports=ports,
                        )
                    )
                    print(pd.DataFrame(rows[-1:]).to_string(index=False), file=sys.stderr, flush=True)
        finally:
            for hog in hogs:
                hog.kill()
            ports.release()
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()

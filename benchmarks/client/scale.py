"""How many open streams does one client machine hold? 1,000 users with 5,000 streams open at once, and what each costs.

    python -m benchmarks.client.scale [--streams 5000] [--opened-in 5] [--chunks 100] [--gap-ms 200] [--workers 1]

The C server of `benchmarks.client.run` answers slowly enough that all streams are open together. Prints for the client
alone: memory a stream (growth of the resident set from before the first request) when all are open and at the end, when
every answer is held undecoded; CPU a chunk; the true error of its TTFT and the lateness of its sends meanwhile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.client import clients, run
from pytest_kvcache.client import event_stream, framing, wire
from pytest_kvcache.client.open_files import raise_open_files
from pytest_kvcache.runs.ports import PortLeases


def resident_kb() -> float:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024


def hold(port: int, due: list[float], all_open_s: float, limit_s: float) -> dict[str, Any]:
    """Open a stream at each time of `due`, read all to their ends, and return what it took."""
    raise_open_files(len(due) + 100)
    payload = framing.request(f"127.0.0.1:{port}", "/v1/chat/completions", clients.BODY)
    done: list[wire.Exchange] = []
    found: dict[str, Any] = {}
    line = wire.Wire("127.0.0.1", port)
    before_kb, before_s = resident_kb(), clients.cpu_s()
    for at in due:
        line.submit(wire.Exchange(payload, at, due[-1] + limit_s, done.append))

    def sample() -> None:
        found["open"] = len(due) - len(done)
        found["open_kb"] = resident_kb() - before_kb

    line.call_at(all_open_s, sample)
    line.run()
    found["end_kb"], found["cpu_s"] = resident_kb() - before_kb, clients.cpu_s() - before_s
    line.close()
    answers = [(e.due_s, e.sent_s or 0.0, event_stream.events(e.pieces)) for e in done if not e.failed]
    found["rows"] = [row for answer in answers if (row := clients.row(*answer)) is not None]
    found["failed"] = sorted({e.failed for e in done if e.failed})
    return found


def main() -> None:
    """Hold the streams and print what each costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=5000)
    parser.add_argument("--opened-in", type=float, default=5, help="seconds over which the streams are opened")
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--gap-ms", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    stream_s = args.chunks * args.gap_ms / 1000
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(args.workers, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        program = run.build(Path(folder))
        ports = PortLeases(Path(folder) / "ports")
        port = ports.take()
        timing = [str(args.chunks), str(run.FIRST_US), str(args.gap_ms * 1000)]
        server = subprocess.Popen([str(program), str(port), *timing])
        try:
            start = time.monotonic() + 5  # until then the workers have started
            due = [start + i * args.opened_in / args.streams for i in range(args.streams)]
            all_open_s = due[-1] + max(0.5, 0.1 * (stream_s - args.opened_in))
            parts = [
                pool.submit(hold, port, due[worker :: args.workers], all_open_s, 2 * stream_s)
                for worker in range(args.workers)
            ]
            results = [part.result() for part in parts]
        finally:
            server.terminate()
            server.wait()
            ports.release()
    rows = pd.DataFrame([row for result in results for row in result["rows"]])
    errors = rows["ttft_error_ms"].abs()
    table = {
        "worker processes": args.workers,
        "streams open at once": sum(result["open"] for result in results),
        "streams that ended well": len(rows),
        "KiB a stream, all open": round(sum(result["open_kb"] for result in results) / args.streams, 1),
        f"KiB a stream, {args.chunks} chunks held": round(sum(r["end_kb"] for r in results) / args.streams, 1),
        "CPU ms/1000 chunks": round(1e6 * sum(result["cpu_s"] for result in results) / (len(rows) * args.chunks), 1),
        "TTFT error p50 ms": round(errors.quantile(0.5), 3),
        "TTFT error p99 ms": round(errors.quantile(0.99), 3),
        "TTFT error max ms": round(errors.max(), 3),
        "send late p99 ms": round(rows["late_ms"].quantile(0.99), 3),
    }
    print(pd.Series(table, dtype=object).to_string())
    for result in results:
        for failed in result["failed"]:
            print("failed:", failed)


if __name__ == "__main__":
    main()

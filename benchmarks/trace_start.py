"""Does a full trace start on time? Its script's seconds and memory, and how late its requests leave.

    python -m benchmarks.trace_start [--requests 12031] [--speed 20] [--seconds 30] [--workers 1]

The trace has the shape of Mooncake's conversation trace: 12,031 requests in an hour, prompts with a mean of about
12,000 tokens and a longest of 126,000, in blocks of 512 tokens, of which two fifths begin other prompts too. It is made
from a seed. It is sent to the server of `benchmarks.client`, which answers each request with a few chunks; a stand-in
of the tokenizer counts words. "Late" is when the last byte of a request left, less when it was due; "begun" is when the
sender gave the first byte to the kernel, less when it was due. Between them lies what the network and the server take
to accept a request of up to a megabyte. `floor` is how late a bare timer beside it was (`benchmarks/floor.py`): a
request that was late while a processor of the machine did not run is told apart.

`script` is the time and the largest memory of a process that makes the script; `before the clock` adds what is made
before the clock starts. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import math
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.client.run import build
from benchmarks.floor import Floor
from pytest_kvcache.client.connection import Connection
from pytest_kvcache.client.exchange import Exchange
from pytest_kvcache.load import worker
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.table import to_frame
from pytest_kvcache.runs.ports import PortLeases
from pytest_kvcache.workload.mooncake import MooncakeTrace
from pytest_kvcache.workload.script import Message

BLOCK, LONGEST, MEAN, HOUR_MS = 512, 126_000, 12_000, 3_600_000
_BEGUN = struct.Struct("=dd")
_SPREAD = 1.3  # of the logarithm of the lengths
_VOCABULARY = tuple("".join(letters) for letters in itertools.product("bcdfg", "aeiou", "klmnp", "aeiou"))


class WordCounter:
    """Stands in for the served tokenizer: a word is a token."""

    max_model_len: int | None = None

    def count(self, messages: Sequence[Message]) -> int:
        """Return the number of words, and those of a template."""
        return 5 + sum(4 + len(m.text.split()) for m in messages)

    def words(self) -> tuple[str, ...]:
        """Return the vocabulary."""
        return _VOCABULARY


def write_trace(path: Path, requests: int) -> None:
    """Write a trace in the shape of Mooncake's conversation trace."""
    source = random.Random(0)  # noqa: S311 - reproducible, not secret
    fresh = itertools.count()
    histories: list[list[int]] = []
    lengths = [source.lognormvariate(math.log(MEAN) - _SPREAD**2 / 2, _SPREAD) for _ in range(requests)]
    lengths = [min(LONGEST, max(200.0, length)) for length in lengths]
    lengths[requests // 2] = LONGEST
    with path.open("w", encoding="utf-8") as file:
        for number, length in enumerate(map(int, lengths)):
            blocks = -(-length // BLOCK)
            before = source.choice(histories) if histories and source.random() < 0.8 else []
            shared = min(len(before), int(blocks * source.uniform(0.2, 0.8)))
            ids = [*before[:shared], *itertools.islice(fresh, blocks - shared)]
            histories.append(ids)
            at_ms = HOUR_MS * number // requests
            row = {"timestamp": at_ms, "input_length": length, "output_length": 8, "hash_ids": ids}
            file.write(json.dumps(row) + "\n")


def workload(trace: Path, *, speed: float, seconds: float, workers: int) -> MooncakeTrace:
    """Return the workload that sends the trace."""
    return MooncakeTrace(
        path=trace,
        context_tokens=(LONGEST,),
        duration_s=seconds,
        speed=speed,
        workers=workers,
        warmup_requests=0,
        ignore_eos=False,
    )


def peak_mib() -> float:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_script(trace: Path) -> None:
    """Be the process that makes the script of the whole trace, and print what it took."""
    made = workload(trace, speed=1.0, seconds=3601, workers=1)
    before_s = time.monotonic()
    made.check()
    script = made.script(LONGEST, WordCounter())
    took_s = time.monotonic() - before_s
    print(f"script: {len(script.conversations)} requests in {took_s:.1f} s, {peak_mib():.0f} MiB at most")


class Begun:
    """When the sending processes began to write each request: they tell it to a pipe, which costs them microseconds.

    It holds some 65,000 requests.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        write, begin = self._write, Connection.begin

        def noted(connection: Connection, exchange: Exchange) -> None:
            os.write(write, _BEGUN.pack(exchange.due_s, time.monotonic()))
            begin(connection, exchange)

        setattr(Connection, "begin", noted)  # noqa: B010 - for this process and those that it forks

    def late_s(self, due_s: pd.Series[float]) -> np.ndarray:
        """Return how late each request was begun that was due at these times (CLOCK_MONOTONIC)."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._read, 1 << 20):
                data += piece
        told = np.frombuffer(data).reshape(-1, 2)
        told = told[np.argsort(told[:, 0], kind="stable")]
        at = np.clip(np.searchsorted(told[:, 0], due_s.to_numpy() - 1e-6), 0, len(told) - 1)
        return np.asarray(told[at, 1] - due_s.to_numpy())


def send(trace: Path, folder: Path, *, speed: float, seconds: float, workers: int) -> None:
    """Send the trace, and print how late its requests left."""
    begun = Begun()
    program, ports = build(folder), PortLeases(folder / "ports")
    port = ports.take()
    server = subprocess.Popen([str(program), str(port), "8", "20000", "10000"])
    said: list[tuple[float, str]] = []
    begun_s = time.monotonic()
    try:
        setattr(worker, "ServedTokenizer", lambda *_, **__: WordCounter())  # noqa: B010 - the stub serves no tokenizer
        plan = LoadPlan(
            base_url=f"http://127.0.0.1:{port}/v1",
            model="stub",
            workload=workload(trace, speed=speed, seconds=seconds, workers=workers),
            context_tokens=LONGEST,
            tokenizer_url=f"http://127.0.0.1:{port}",
            report_s=3600,
            rows=folder / "rows.parquet",
            summary=folder / "facts.json",
        )
        with Floor() as floor:
            outcome = worker.carry_out(plan, lambda line: said.append((time.monotonic() - begun_s, line)))
    finally:
        server.terminate()
        server.wait()
        ports.release()
    clock_s = next(at_s for at_s, line in said if line.startswith(worker.CLOCK_STARTS))
    rows = to_frame(outcome.rows)
    rows = rows[rows["actual_start_s"].notna()].copy()
    asked = len(outcome.rows)
    start_s = outcome.started_monotonic_s
    rows["late_ms"] = (rows["actual_start_s"] - rows["due_s"]) * 1e3
    rows["begun_ms"] = begun.late_s(rows["due_s"] + start_s) * 1e3
    rows["stall_ms"] = [
        1e3 * floor.stall_s(start_s + due_s, start_s + left_s)
        for due_s, left_s in zip(rows["due_s"], rows["actual_start_s"], strict=True)
    ]
    children_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"before the clock: {clock_s:.1f} s, {peak_mib():.0f} MiB at most; a load process {children_mib:.0f} MiB")
    print(f"senders with real-time priority: {outcome.real_time_senders}; {floor.line()}")
    for name, some in ((f"all {len(rows)} of {asked}", rows), ("the first 95", rows[:95])):
        for what in ("begun", "late"):
            each = some[f"{what}_ms"]
            p50, p99 = each.quantile(0.5), each.quantile(0.99)
            over = some[each > 5]
            told = int((over["stall_ms"] > over[f"{what}_ms"] / 2).sum())
            print(
                f"{what}, {name}: p50 {p50:.3f} ms, p99 {p99:.3f} ms, max {each.max():.3f} ms, {len(over)} over 5 ms"
                + (f" ({told} while a processor did not run)" if len(over) else "")
            )
    latest = rows.nlargest(5, "late_ms")[["due_s", "intended_prompt_tokens", "begun_ms", "late_ms", "stall_ms"]]
    print(f"the latest:\n{latest.round(3).to_string(index=False)}")


def main() -> None:
    """Make the trace, its script, and send it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=12_031)
    parser.add_argument("--speed", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--script-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.script_of:
        make_script(args.script_of)
        return
    with tempfile.TemporaryDirectory() as name:
        trace = Path(name) / "trace.jsonl"
        write_trace(trace, args.requests)
        subprocess.run([sys.executable, "-m", "benchmarks.trace_start", "--script-of", str(trace)], check=True)
        send(trace, Path(name), speed=args.speed, seconds=args.seconds, workers=args.workers)


if __name__ == "__main__":
    main()

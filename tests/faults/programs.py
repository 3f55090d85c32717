"""Programs of an engine environment with a fault of their own: `programs.py FAULT PROGRAM ARGS…` runs the real one.

`shim` puts one of them into an overlay of the real environment, which `--kv-engine` then names.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from benchmarks.power.overlay import make

#: Has a program behind `restarts` or `loses-its-keys` killed and started once more.
AGAIN = signal.SIGUSR1


def shim(folder: Path, engine: Path, program: str, fault: str) -> Path:
    """Write an overlay of `engine` to `folder` whose `program` has a fault; return it."""
    make(folder, engine)
    path = folder / "bin" / program
    command = f'exec {sys.executable} {Path(__file__).absolute()} {fault} {engine / "bin" / program} "$@"'
    path.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    return folder


def one_server(argv: list[str]) -> list[str]:
    """Return the router's command line without its second server."""
    first = argv.index("--worker-urls") + 1
    return argv[: first + 1] + argv[first + 2 :]


def wrong_bucket(argv: list[str]) -> list[str]:
    """Return LMCache's command line with a host name whose first label is no bucket of the server."""
    return [word.replace('"s3_endpoint":"127.0.0.1:', '"s3_endpoint":"localhost:') for word in argv]


def leftovers(argv: list[str], kept: str) -> list[str]:
    """Return LMCache's command line as it is, once its folder has what another run left (`kept`)."""
    adapter = json.loads(argv[argv.index("--l2-adapter") + 1])
    shutil.copytree(kept, adapter["base_path"], dirs_exist_ok=True)
    return argv


def supervise(argv: list[str], *, keys: str = "") -> int:
    """Run a program and return its exit code; at `AGAIN` it is killed and started anew, its counters at zero.

    Args:
        argv: To run.
        keys: RCLONE_AUTH_KEY of every start but the first, "" for the same.
    """
    again = False
    child = subprocess.Popen(argv)

    def kill(number: int, _frame: FrameType | None) -> None:
        nonlocal again
        again = number == AGAIN
        child.send_signal(signal.SIGKILL if again else number)

    for number in (AGAIN, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, kill)
    while True:
        code = child.wait()
        if not again:
            return code
        again = False
        child = subprocess.Popen(argv, env={**os.environ, **({"RCLONE_AUTH_KEY": keys} if keys else {})})


def main(fault: str, argv: list[str]) -> int:
    """Be a program with a fault; what it must know stands behind a colon."""
    name, _, value = fault.partition(":")
    if name == "loses-its-keys":
        return supervise(argv, keys='"others,others"')
    if name == "leftovers":
        return supervise(leftovers(argv, value))
    if name == "restarts":
        return supervise(argv)
    change = {"one-server": one_server, "wrong-bucket": wrong_bucket}[name]
    return supervise(change(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

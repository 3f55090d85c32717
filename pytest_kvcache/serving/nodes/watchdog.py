"""Ends what an agent has started once the agent is gone, however it ended: a process beside each agent.

An agent is a worker of Ray, which Ray kills when pytest dies. Ray ends at most the worker's own children, and no
process of theirs. The watchdog reads a pipe that only the agent's process holds open. When the pipe ends, what the
agent's journal still names is removed, exactly as the next run would do it. Where something kills the watchdog too, the
next run does it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from pytest_kvcache.config import environment
from pytest_kvcache.runs.journal import clean_up_after_the_dead

#: How often a journal is looked at whose lock is held for a moment longer than the pipe is open (s).
_POLL_S, _LOOKS = 0.2, 25


def start(journals: Path, journal: str) -> int:
    """Start the watchdog of this process, and return the pipe's end that keeps it waiting.

    Args:
        journals: Folder of the node's journals.
        journal: Name of this process's own journal, without its suffix.
    """
    reads, writes = os.pipe()
    try:
        # Two generations: what Ray kills of a worker are its children, and the watchdog is to be none of them.
        subprocess.run(
            [sys.executable, "-m", "pytest_kvcache.serving.nodes.watchdog", str(journals), journal],
            stdin=reads,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment.inherited(os.environ) | _imports(),
            cwd="/",
            check=True,
            start_new_session=True,
        )
    finally:
        os.close(reads)
    return writes


def _imports() -> dict[str, str]:
    """Return what has this package found where it is not installed: PYTHON* is not inherited."""
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {}


def main(journals: Path, journal: str) -> None:
    """Wait for the end of standard input, then clean up."""
    if os.fork():
        os._exit(0)  # whoever started this waits for no more
    os.setsid()
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    left = journals / f"{journal}.json"
    for _ in range(_LOOKS):
        if not left.exists():
            return
        clean_up_after_the_dead(journals, lambda _: None)
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""One process of a serving pair, as data: what `render` prints and a launcher starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Stage = Literal["storage", "servers", "balancer", "load"]


@dataclass(frozen=True)
class Component:
    """A program to run.

    Args:
        name: Unique within a pair; names the log file (`vllm-0`).
        argv: The command line. Anyone on the machine can read it: no secret may be in it.
        stage: Components of a stage start side by side, once the stage before is ready.
        env: Added to the environment.
        secret_env: Added too, but never printed, logged or stored.
        files: Text files to write first, by path.
        folders: Made empty before the start, entered by nobody else, and removed after the end.
        ready_url: Answers 200 once ready; None where a running process is all there is to wait for.
        ready_any_status: Any HTTP answer counts (an S3 server answers 403 to a stranger).
    """

    name: str
    argv: tuple[str, ...]
    stage: Stage
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[Path, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()
    ready_url: str | None = None
    ready_any_status: bool = False

"""One process of a serving pair, as data that `render` prints and a launcher starts."""

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
        name: Name within the pair and of the log file (`vllm-0`).
        argv: The command line. Anyone on the machine can read it: no secret may be in it.
        stage: Components of a stage start side by side, once the stage before is ready.
        env: Variables added to the environment.
        secret_env: Variables added too, but never printed, logged or stored.
        files: Content of each text file to write before the start, by path.
        folders: Folders made empty before the start, closed to other users, and removed after the end.
        ready_url: URL that answers 200 once the program is ready; None where a running process is enough.
        place: Name of the place where it runs (`serving/places.py`); "" for this machine.
        ready_line: Beginning of the line that the program prints once it is ready, where it does not speak HTTP.
        ready_any_status: Whether any HTTP answer of `ready_url` counts (an S3 server answers 403 to a stranger).
    """

    name: str
    argv: tuple[str, ...]
    stage: Stage
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[Path, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()
    ready_url: str | None = None
    ready_line: str = ""
    place: str = ""
    ready_any_status: bool = False

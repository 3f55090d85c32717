"""A lab that is up: its namespace, its guest, its mounts, and their end.

with Lab.up() as lab:
lab.show(folder, writable=True)
server = lab.exec(["lmcache", "server", …], env={…}, log=folder / "lmcache.log")
subprocess.run(lab.inside(["curl", f"http://{lab.guest_address}:8080/"]))
server.stop()
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.pnfs import build, network, record
from lab.pnfs.folders import GUEST_CONTROL, control_of, runs
from lab.pnfs.guest import Done, Guest, GuestProcess
from lab.pnfs.settings import GUEST_ADDRESS, HOST_ADDRESS, LabSettings
from pytest_kvcache.errors import ConfigError, SetupError

#: To stand beside every figure of the lab.
LABEL = "soft-RoCE, client and servers in one kernel: shows what is correct, not what is fast"
#: Names the lab that a command of `enter` runs in.
VARIABLE = "KVCACHE_PNFS_LAB"
_DOWN_LIMIT_S = 30.0

Say = Callable[[str], None]


class Lab:
    """A lab that is up.

    Args:
        folder: The lab's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self.settings = LabSettings.model_validate_json((folder / "settings.json").read_bytes())
        self.guest = Guest(control_of(folder), lambda: record.is_alive(folder))

    @property
    def namespace(self) -> str:
        """Name of the network namespace, for `ip netns`."""
        return record.read(self.folder).namespace

    @property
    def guest_address(self) -> str:
        """Address of the guest, which only processes in the namespace can reach."""
        return GUEST_ADDRESS

    @property
    def host_address(self) -> str:
        """Address of the namespace's own end of the wire, which the guest can reach."""
        return HOST_ADDRESS

    @property
    def mounts(self) -> tuple[str, ...]:
        """Where the export is mounted in the guest; each has a page cache and counters of its own."""
        return self.settings.mounts

    @property
    def is_alive(self) -> bool:
        """Whether it is still up."""
        return record.is_alive(self.folder)

    def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        log: Path | None = None,
    ) -> GuestProcess:
        """Start a command in the guest.

        Args:
            argv: The command; programs and files are those of the guest.
            env: Its variables, beside PATH, HOME and LANG.
            cwd: Its folder in the guest.
            log: File of the host to append its output to, below a folder shown as writable; by default the lab's.
        """
        return self.guest.start(argv, env=env, cwd=cwd, log=log.absolute() if log else None)

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, limit_s: float = 60.0, check: bool = True
    ) -> Done:
        """Run a command in the guest and wait for its end.

        Raises:
            RunError: It did not end within `limit_s` (s), or failed where `check` is set.
        """
        return self.guest.run(argv, env=env, limit_s=limit_s, check=check)

    def show(self, folder: Path, *, writable: bool = False) -> None:
        """Have the guest see a folder of the host at the same path.

        Raises:
            ConfigError: Its name has characters that a mount option cannot have.
            RunError: The guest cannot mount it.
        """
        path = str(folder.absolute())
        if any(c in path for c in ", \t\n\\'\""):
            raise ConfigError("cannot be shown: its name has blanks, commas or quotes", where=path)
        self.guest.shell(f"show {'rw' if writable else 'ro'} '{path}'")

    def write(self, name: str, text: str) -> str:
        """Write a file that the guest can read, whole; return its path in the guest. Each name is to be used once."""
        path = self.guest.control / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return f"{GUEST_CONTROL}/files/{name}"

    def read(self, name: str) -> str:
        """Return a file that the guest wrote below `/lab/files`."""
        return (self.guest.control / "files" / name).read_text(encoding="utf-8", errors="replace")

    def inside(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` on the host, in the lab's network namespace."""
        return network.inside(self.namespace, argv)

    @classmethod
    @contextmanager
    def up(cls, settings: LabSettings | None = None, *, say: Say = print) -> Iterator[Lab]:
        """Yield a lab that is up; it is taken down with the body, or with this process however that ends.

        Raises:
            SetupError: The host lacks something, or the guest does not come up.
        """
        lab, keeper = _start(settings or LabSettings(), detached=False, say=say)
        try:
            yield lab
        finally:
            _end(keeper)

    @classmethod
    def up_detached(cls, settings: LabSettings | None = None, *, say: Say = print) -> Lab:
        """Return a lab that stays up until `down`.

        Raises:
            SetupError: The host lacks something, or the guest does not come up.
        """
        return _start(settings or LabSettings(), detached=True, say=say)[0]

    @classmethod
    def attach(cls, name: str | None = None) -> Lab:
        """Return a lab that is up: by its id, else the one that this command was entered into, else the only one.

        Raises:
            SetupError: There is no such lab, or there are several.
        """
        name = name or os.environ.get(VARIABLE)
        there = record.living(runs())
        found = [folder for folder in there if name in {None, folder.name}]
        if len(found) == 1:
            return cls(found[0])
        ids = ", ".join(folder.name for folder in there)
        raise SetupError(
            f"{len(found)} labs are up" if found else "no such lab is up" if name else "no lab is up",
            where=name or "lab",
            todo=f"name one of: {ids}" if ids else "python -m lab.pnfs up",
        )

    def down(self) -> None:
        """Take a detached lab down.

        Raises:
            SetupError: It does not end.
        """
        pid = record.keeper_of(record.read(self.folder))
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
        until_s = time.monotonic() + _DOWN_LIMIT_S
        while self.folder.exists() and record.is_alive(self.folder):
            if time.monotonic() > until_s:
                raise SetupError(
                    f"does not end within {_DOWN_LIMIT_S:.0f} s", where=f"lab {self.id}", todo=f"see {self.folder}"
                )
            time.sleep(0.05)


def _start(settings: LabSettings, *, detached: bool, say: Say) -> tuple[Lab, subprocess.Popen[str]]:
    record.clean_up_after_the_dead(runs(), say)
    built = build.ready(say)
    name = secrets.token_hex(3)
    settings = _with_python(settings)
    told = {
        "id": name,
        "runs": str(runs()),
        "settings": settings.model_dump(),
        "kernel": str(built.kernel),
        "root": str(built.root),
        "detached": detached,
    }
    keeper = subprocess.Popen(
        [sys.executable, "-m", "lab.pnfs.keeper"],
        cwd=_repository(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        answer = _ask(keeper, told)
    except BaseException:
        _end(keeper)
        raise
    if "ready" not in answer:
        _end(keeper)
        raise SetupError(
            answer.get("error", "ended before the guest was up"),
            where=answer.get("where", "lab"),
            todo=answer.get("todo", ""),
        )
    return Lab(runs() / name), keeper


def _with_python(settings: LabSettings) -> LabSettings:
    """Return settings by which the guest sees this interpreter, its environment and this repository."""
    own = {sys.prefix, sys.base_prefix, str(_repository())}
    below = {path for path in own if any(other != path and Path(path).is_relative_to(other) for other in own)}
    shown = [path for path in sorted(own - below) if path not in settings.read_only]
    return settings.model_copy(update={"read_only": (*settings.read_only, *shown)})


def _repository() -> Path:
    return Path(__file__).parents[2]


def _ask(keeper: subprocess.Popen[str], told: Mapping[str, Any]) -> dict[str, Any]:
    """Tell a keeper what to make, and return its answer; {} where it ended instead."""
    if keeper.stdin is None or keeper.stdout is None:
        raise ValueError("the keeper was started without pipes")
    keeper.stdin.write(json.dumps(told) + "\n")
    keeper.stdin.flush()
    answer: dict[str, Any] = json.loads(keeper.stdout.readline() or "{}")
    return answer


def _end(keeper: subprocess.Popen[str]) -> None:
    """Have a keeper take its lab down, and wait for it."""
    if keeper.stdin is not None:
        keeper.stdin.close()
    try:
        keeper.wait(_DOWN_LIMIT_S)
    except subprocess.TimeoutExpired:
        keeper.terminate()
        keeper.wait()

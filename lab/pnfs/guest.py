"""Runs commands in the guest, by files in a folder that both sides see.

A command is a script `queue/NAME.sh`. The guest's init renames it, starts it in a session of its own, and writes
`NAME.pid`, then `NAME.code` when it has ended. Every message has a new name, since the guest may keep pages of a file
that it has read once.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.pnfs.folders import GUEST_CONTROL
from pytest_kvcache.errors import RunError
from pytest_kvcache.runs import files

_POLL_S = 0.02


@dataclass(frozen=True)
class Done:
    """A command of the guest that has ended.

    Args:
        code: Its exit code; 128 and the signal's number for one that a signal ended.
        output: What it printed, stdout and stderr together.
    """

    code: int
    output: str


class GuestProcess:
    """A command that runs in the guest, in a session of its own.

    Args:
        guest: The guest.
        name: Name of its files.
        log: The host's file that it prints to.
    """

    def __init__(self, guest: Guest, name: str, log: Path) -> None:
        self._guest = guest
        self._name = name
        self.log = log

    @property
    def pid(self) -> int:
        """Its process id in the guest, which is that of its session too."""
        return int(self._guest.wait_for(f"queue/{self._name}.pid", limit_s=30.0))

    def poll(self) -> int | None:
        """Return its exit code, None while it runs.

        Raises:
            RunError: The guest has ended.
        """
        text = self._guest.told(f"queue/{self._name}.code")
        if text is None:
            self._guest.check_alive()
        return None if text is None else int(text)

    def wait(self, limit_s: float) -> int:
        """Return its exit code once it has ended.

        Raises:
            RunError: It did not end within `limit_s` (s), or the guest has ended.
        """
        until_s = time.monotonic() + limit_s
        while (code := self.poll()) is None:
            if time.monotonic() > until_s:
                raise RunError(
                    f"did not end within {limit_s:.0f} s: {tail(self.log)}",
                    where=f"command {self._name} in the guest",
                    todo=f"see {self.log}",
                )
            time.sleep(_POLL_S)
        return code

    def signal(self, name: str = "TERM") -> None:
        """Send a signal, by its name, to all processes of the command's session; one that has ended is no error."""
        self._guest.run(["pkill", f"-{name}", "-s", str(self.pid)], check=False)

    def stop(self, grace_s: float = 10.0) -> int:
        """End it politely, after `grace_s` (s) by force; return its exit code."""
        if self.poll() is None:
            self.signal("TERM")
            try:
                return self.wait(grace_s)
            except RunError:
                self.signal("KILL")
        return self.wait(10.0)


class Guest:
    """A guest that is up.

    Args:
        control: The control folder, as the host sees it.
        is_alive: Returns whether the lab's kernel runs.
    """

    def __init__(self, control: Path, is_alive: Callable[[], bool]) -> None:
        self.control = control
        self._is_alive = is_alive
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def start(
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
            log: Absolute path of a file to append its output to, below a folder that the guest can write (`Lab.show`);
                by default a file in the control folder.
        """
        name = f"{self._prefix}-{next(self._numbers):05}"
        target = str(log) if log else f"{GUEST_CONTROL}/logs/{name}.log"
        there = log or self.control / "logs" / f"{name}.log"
        lines = [f"export {key}={shlex.quote(value)}" for key, value in (env or {}).items()]
        lines += [
            f"exec >>{shlex.quote(target)} 2>&1",
            f"cd {shlex.quote(cwd)} || exit 126",
            f"exec {shlex.join(argv)}",
        ]
        files.write_text(self.control / "queue" / f"{name}.sh", "\n".join([*lines, ""]))
        return GuestProcess(self, name, there)

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        limit_s: float = 60.0,
        check: bool = True,
    ) -> Done:
        """Run a command in the guest and wait for its end.

        Raises:
            RunError: It did not end within `limit_s` (s), or failed where `check` is set.
        """
        process = self.start(argv, env=env, cwd=cwd)
        try:
            code = process.wait(limit_s)
        except RunError:
            if self._is_alive():
                self.start(["pkill", "-KILL", "-s", str(process.pid)])
            raise
        output = process.log.read_text(encoding="utf-8", errors="replace") if process.log.exists() else ""
        if check and code:
            raise RunError(f"ended with {code}: {tail(process.log)}", where=f"`{shlex.join(argv):.120}` in the guest")
        return Done(code, output)

    def shell(self, script: str, *, limit_s: float = 60.0, check: bool = True) -> str:
        """Run a script of bash with the lab's own functions (`guest/storage.sh`) and return what it printed.

        Raises:
            RunError: It did not end within `limit_s` (s), or failed where `check` is set.
        """
        text = f"set -e; . {GUEST_CONTROL}/storage.sh; {script}"
        return self.run(["bash", "-c", text], limit_s=limit_s, check=check).output

    def told(self, name: str) -> str | None:
        """Return the content of a file that the guest writes whole, None where it is not there yet."""
        try:
            return (self.control / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def wait_for(self, name: str, limit_s: float, *, of: GuestProcess | None = None) -> str:
        """Return the content of a file once the guest has written it.

        Args:
            name: The file, below the control folder.
            limit_s: Longest time (s).
            of: The command that is to write it, if the wait is to end with it.

        Raises:
            RunError: The guest or the command has ended, or the file did not come in time.
        """
        until_s = time.monotonic() + limit_s
        while (text := self.told(name)) is None:
            self.check_alive()
            if of is not None and (code := of.poll()) is not None and self.told(name) is None:
                raise RunError(
                    f"ended with {code}: {tail(of.log)}", where="a command in the guest", todo=f"see {of.log}"
                )
            if time.monotonic() > until_s:
                raise RunError(f"no {name} within {limit_s:.0f} s", where="guest", todo=f"see {self.control.parent}")
            time.sleep(_POLL_S)
        return text

    def check_alive(self) -> None:
        """Check that the guest runs.

        Raises:
            RunError: It has ended.
        """
        if not self._is_alive():
            raise RunError(
                "has ended", where="the lab's guest", todo="see its console in the lab's folder, if it is there"
            )


def tail(path: Path, lines: int = 3) -> str:
    """Return the last lines of a file as one line, for an error."""
    try:
        text = path.read_bytes()[-4096:].decode(errors="replace")
    except OSError:
        return "(no output)"
    return " | ".join(text.strip().splitlines()[-lines:]) or "(no output)"


def boot_id() -> str:
    """Return the host kernel's id of its present start."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def is_root() -> bool:
    """Return whether this process may make devices and namespaces."""
    return os.geteuid() == 0

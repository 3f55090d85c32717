"""The process that holds a lab up, and takes it down however it ends: `python -m lab.pnfs.keeper`, started by `Lab.up`.

It reads the lab's settings as one line of JSON, and then waits at the same pipe: it ends the lab when the pipe's other
side is closed, as it is when the driver dies. It is two processes. The second one makes the lab and waits; the first
one waits for the second and removes what is left. If the first is killed, the second ends in good order and removes
what is left; if the second is killed, so is the guest (by the kernel, as the guest's PID namespace ends with it), and
the first one cleans up. If both are killed at once, the guest dies too, and the next `up` or `down` removes namespace
and folder by the record.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lab.pnfs import network, record
from lab.pnfs.folders import control_of
from lab.pnfs.guest import tail
from lab.pnfs.record import Held
from lab.pnfs.settings import TAP, LabSettings
from pytest_kvcache.errors import KvCacheError, SetupError
from pytest_kvcache.runs.processes import leader_of

_GUEST_FILES = Path(__file__).parent / "guest"
_BOOT_LIMIT_S = 90.0
_HALT_LIMIT_S = 10.0
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Hold a lab up until the driver closes the pipe, or SIGTERM comes, or the guest ends."""
    told = json.loads(sys.stdin.readline())
    settings = LabSettings.model_validate(told["settings"])
    held = Held.make(Path(told["runs"]), told["id"])
    (held.folder / "settings.json").write_text(settings.model_dump_json(), encoding="utf-8")
    log = held.folder / "keeper.log"
    _write_to(log, 2)  # else whoever reads the driver's stderr to its end would wait for the lab's
    first, second = os.getpid(), os.fork()
    if second == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        code = 1
        try:
            code = _hold(held, settings, told)
        except KvCacheError as error:
            _tell(error=str(error.what), where=error.where, todo=error.todo)
        finally:
            if os.getppid() != first:
                record.clean(held)
            os._exit(code)
    _write_to(log, 1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: _pass_on(second))
    _, status = os.waitpid(second, 0)
    held.record = record.read(held.folder)
    left = record.clean(held)
    if left:
        sys.stderr.write(f"lab {told['id']} leaves: {', '.join(left)}\n")
    return os.waitstatus_to_exitcode(status) or bool(left)


def _pass_on(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def _hold(held: Held, settings: LabSettings, told: dict[str, Any]) -> int:
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    held.note(keeper=leader_of(os.getpid(), held.folder / "keeper.log"))
    control = _make_control(held.folder, settings)
    if settings.max_map_count:
        record.raise_max_map_count(held, settings.max_map_count)
    network.make(held.record.namespace)
    kernel = _start(held, settings, Path(told["kernel"]), Path(told["root"]))
    ends = [read] if told["detached"] else [read, sys.stdin.fileno()]
    try:
        if not _wait_for(control / "ready", kernel, ends, _BOOT_LIMIT_S):
            return 0
        _tell(ready=True)
        _write_to(held.folder / "keeper.log", 1)
        descriptor = os.pidfd_open(kernel.pid)
        select.select([descriptor, *ends], [], [])
    finally:
        _halt(kernel, control)
    return 0


def _make_control(folder: Path, settings: LabSettings) -> Path:
    control = control_of(folder)
    for name in ("queue", "logs", "files"):
        (control / name).mkdir(parents=True)
    for path in _GUEST_FILES.glob("*.sh"):
        shutil.copy(path, control / path.name)
    shown = [f"ro {path}" for path in settings.read_only] + [f"rw {path}" for path in settings.read_write]
    (control / "shown").write_text("".join(f"{line}\n" for line in shown), encoding="utf-8")
    lines = [f"{key}='{value}'\n" for key, value in settings.environment().items()]
    (control / "settings").write_text("".join(lines), encoding="utf-8")
    return control


def _start(held: Held, settings: LabSettings, kernel: Path, root: Path) -> subprocess.Popen[bytes]:
    """Start the guest's kernel in the lab's network namespace, and in mount and PID namespaces of its own.

    The guest's memory is a file on a tmpfs that only its mount namespace has, and its processes, which are processes of
    the host, are in its PID namespace: both are gone with the kernel, however that ends.
    """
    memory, uml = held.folder / "memory", held.folder / "uml"
    memory.mkdir()
    uml.mkdir()
    command = [
        str(kernel),
        f"mem={settings.memory_mib}M",
        "root=/dev/root",
        "rootfstype=hostfs",
        f"rootflags={root}",
        "ro",
        "init=/sbin/lab-init",
        "con=null",
        "con0=null,fd:1",
        "con1=null",
        "ssl=null",
        "panic=-1",
        "quiet",
        "umid=lab",
        f"uml_dir={uml}",
        f"vec0:transport=tap,ifname={TAP},depth=128,gro=1",
        f"LAB_CONTROL={control_of(held.folder)}",
    ]
    mount = f'mount -t tmpfs -o size={settings.memory_mib + 64}m,mode=700 tmpfs "$1" && shift && exec "$@"'
    inner = ["sh", "-c", mount, "lab", str(memory), "env", "-u", "LD_LIBRARY_PATH", f"TMPDIR={memory}", *command]
    own = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--", *inner]
    argv = ["setpriv", "--pdeathsig", "KILL", *network.inside(held.record.namespace, own)]
    with (held.folder / "console.log").open("wb") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _wait_for(path: Path, kernel: subprocess.Popen[bytes], ends: list[int], limit_s: float) -> bool:
    """Return True once the guest has written a file, False where the lab is to end before.

    Raises:
        SetupError: The guest ended, or did not come up in time.
    """
    console, until_s = path.parent.parent / "console.log", time.monotonic() + limit_s
    while not path.exists():
        if kernel.poll() is not None:
            raise SetupError(f"the guest ended while it booted: {tail(console, 5)}", where="lab", todo=_TO_SEE)
        if time.monotonic() > until_s:
            said = tail(path.parent / "storage.log", 5)
            raise SetupError(f"the guest is not up after {limit_s:.0f} s: {tail(console, 2)} | {said}", where="lab")
        if select.select(ends, [], [], 0.02)[0]:
            return False
    failed = path.read_text(encoding="utf-8", errors="replace").strip()
    if failed != "ok":
        said = tail(path.parent / "storage.log", 6)
        raise SetupError(f"storage did not come up: {said}", where="lab", todo="see guest/storage.sh")
    return True


_TO_SEE = "is there enough memory (the guest's is real memory of the host)?"


def _halt(kernel: subprocess.Popen[bytes], control: Path) -> None:
    if kernel.poll() is None:
        (control / "halt").touch()
        try:
            kernel.wait(_HALT_LIMIT_S)
        except subprocess.TimeoutExpired:
            kernel.kill()  # its PID namespace ends with it
    kernel.wait()


def _write_to(log: Path, descriptor: int) -> None:
    """Have what is written to a descriptor go to a file from now on."""
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(opened, descriptor)
    os.close(opened)


def _tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""Machines of a cluster on one machine: network namespaces with addresses of their own, which nothing leaves.

Each has a name of its own (UTS namespace), a folder for temporary files and a home of the plugin. They are joined by a
bridge that is in a namespace too. Files, processes and shared memory are those of the one machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RAY = Path(sys.executable).with_name("ray")
_UP_S = 180.0
_PORT = 6379


@dataclass
class Machine:
    """One of the machines.

    Args:
        name: Its host name.
        address: Its only address beside loopback.
        namespace: Name of its network namespace.
        folder: What is its own: temporary files in `tmp`, the plugin's home in `home`.
        environ: Variables of all its processes.
        raylet: The process `ray start`, once it runs.
    """

    name: str
    address: str
    namespace: str
    folder: Path
    environ: dict[str, str] = field(default_factory=dict)
    raylet: subprocess.Popen[bytes] | None = None

    @property
    def tmp(self) -> Path:
        """Folder of its temporary files."""
        return self.folder / "tmp"

    @property
    def home(self) -> Path:
        """The plugin's home there."""
        return self.folder / "home"

    def argv(self, *command: str | Path) -> list[str]:
        """Return what runs a command on the machine, without a shell around it."""
        become = f'hostname {self.name}; exec "$@"'
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", become, self.name]
        return [*inside, *map(str, command)]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a process on the machine."""
        own = {"TMPDIR": str(self.tmp), "PYTEST_KVCACHE_HOME": str(self.home)}
        return {**os.environ, **own, **self.environ, **more}

    def run(self, *command: str | Path, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.argv(*command), env=self.environment(), capture_output=True, text=True, check=False, timeout=timeout_s
        )

    def processes(self) -> list[psutil.Process]:
        """Return all processes in its network namespace."""
        own = Path(f"/run/netns/{self.namespace}").stat().st_ino
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if Path(f"/proc/{process.pid}/ns/net").stat().st_ino == own:
                    found.append(process)
        return found

    def listening(self, pids: set[int]) -> set[str]:
        """Return on which addresses of it these processes listen."""
        found = set()
        for line in self.run("ss", "-ltnpH").stdout.splitlines():
            if pids & {int(pid) for pid in re.findall(r"pid=(\d+)", line)}:
                found.add(line.split()[3].rpartition(":")[0])
        return found

    def left(self) -> dict[str, list[str]]:
        """Return what a run has left on the machine."""
        return {
            "scratch": [str(path) for path in self.tmp.glob("kvc-*")],
            "journals": [str(path) for path in self.home.rglob("journal/*.json")],
            "runs": [str(path) for path in self.home.rglob("nodes/*/runs/*")],
            "storage": [str(path) for path in self.home.glob("storage/*")],
            "processes": [" ".join(words)[:200] for words in map(_words, self.processes()) if not _is_of_ray(words)],
        }


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_of_ray(words: Sequence[str]) -> bool:
    """Whether a process belongs to the cluster itself, which stays: its daemons, and idle workers; agents do not."""
    if words and words[0].startswith("ray::"):
        return not words[0].startswith("ray::_Agent")
    own = ("/ray/core/", "/ray/_private/", "/ray/dashboard/", "/ray/autoscaler/")
    return not words or str(RAY) in words or any(part in word for word in words for part in own)


NOTHING: dict[str, list[str]] = {"scratch": [], "journals": [], "runs": [], "storage": [], "processes": []}


@dataclass
class Machines:
    """A cluster of machines; the last of them has the head of Ray, and pytest runs there."""

    all: tuple[Machine, ...]
    token: Path

    @property
    def head(self) -> Machine:
        """The machine on which pytest runs."""
        return self.all[-1]

    @property
    def address(self) -> str:
        """Address of the cluster."""
        return f"{self.head.address}:{_PORT}"

    def start_ray(
        self,
        machine: Machine,
        resources: Mapping[str, float] | None = None,
        *,
        cpus: int = 1,
        without: Path | None = None,
    ) -> None:
        """Start a node of the cluster on a machine.

        Args:
            machine: Where.
            resources: Custom resources of the node.
            cpus: Processors that the node says it has.
            without: Folder in whose place processes of the node see an empty one, as where nothing is mounted.
        """
        hide = [] if without is None else ["sh", "-c", f'mount -t tmpfs none {without}; exec "$@"', "hide"]
        words: list[str | Path] = [
            RAY,
            "start",
            "--block",
            "--disable-usage-stats",
            f"--node-ip-address={machine.address}",
        ]
        # Ray takes our word for the GPU, which only servers that ask for one are given.
        words += [f"--num-cpus={cpus}", "--num-gpus=1", "--object-store-memory=80000000"]
        words += [f"--temp-dir={machine.folder / 'ray'}"]
        head = ["--head", f"--port={_PORT}", "--include-dashboard=false"]
        words += head if machine is self.head else [f"--address={self.address}"]
        words += [f"--resources={_json(resources or {})}"]
        with (machine.folder / "ray.out").open("ab") as out:
            machine.raylet = subprocess.Popen(
                machine.argv(*hide, *words), env=machine.environment(), stdout=out, stderr=out, start_new_session=True
            )

    def wait(self, count: int) -> None:
        """Wait until so many nodes live."""
        deadline = time.monotonic() + _UP_S
        code = (
            "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR'); "
            "print('LIVES', sum(n['Alive'] for n in ray.nodes()))"
        )
        said = ""
        while time.monotonic() < deadline:
            done = self.head.run(sys.executable, "-c", code, self.address)
            said = done.stdout + done.stderr[-500:]
            if f"LIVES {count}" in done.stdout:
                return
            for each in self.all:
                if each.raylet is not None and each.raylet.poll() is not None:
                    raise AssertionError((each.folder / "ray.out").read_text())
            time.sleep(0.5)
        raise AssertionError(f"no {count} nodes: {said}")

    def kill_node(self, machine: Machine) -> None:
        """Kill everything on a machine at once, as a power failure does."""
        for process in machine.processes():
            with contextlib.suppress(psutil.Error):
                os.kill(process.pid, signal.SIGKILL)
        if machine.raylet is not None:
            machine.raylet.wait()
            machine.raylet = None


def _json(resources: Mapping[str, float]) -> str:
    return "{" + ", ".join(f'"{name}": {amount}' for name, amount in resources.items()) + "}"


@contextlib.contextmanager
def machines(names: Sequence[str] = ("kv-1", "kv-2", "kv-3")) -> Iterator[Machines]:
    """Make machines, joined by a bridge, and remove them with all that is left on them."""
    tag = f"kv{secrets.token_hex(2)}"
    folder = Path("/tmp") / tag  # short: sockets allow 107 bytes
    switch = f"{tag}-sw"
    made: list[Machine] = []
    try:
        folder.mkdir()
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number, name in enumerate(names, 1):
            own = folder / str(number)
            # Ray's workers would come after all other programs of the machine, compilers among them.
            environ = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
            machine = Machine(name, f"10.77.0.{10 + number}", f"{tag}-{number}", own, environ)
            for each in (machine.tmp, machine.home):
                each.mkdir(parents=True)
            _ip("netns", "add", machine.namespace)
            made.append(machine)
            _ip("-n", switch, "link", "add", f"p{number}", "type", "veth", "peer", "eth0", "netns", machine.namespace)
            _ip("-n", switch, "link", "set", f"p{number}", "master", "br0", "up")
            _ip("-n", machine.namespace, "link", "set", "lo", "up")
            _ip("-n", machine.namespace, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            _ip("-n", machine.namespace, "link", "set", "eth0", "up")
        yield Machines(tuple(made), token)
    finally:
        for machine in made:
            Machines(tuple(made), folder).kill_node(machine)
            subprocess.run(["ip", "netns", "del", machine.namespace], check=False)
        subprocess.run(["ip", "netns", "del", switch], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)

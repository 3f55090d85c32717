"""The present run: what it owns while it lives, and one `close` that leaves nothing behind."""

from __future__ import annotations

import contextlib
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.runs import containers, processes, signals
from pytest_kvcache.runs.files import remove_tree
from pytest_kvcache.runs.journal import Journal, clean_up_after_the_dead
from pytest_kvcache.runs.ports import PortLeases
from pytest_kvcache.runs.processes import Leader

#: Time between SIGTERM and SIGKILL (s): the whole end of a run takes less than 10 s.
GRACE_S = 5.0


class RunSession:
    """Everything that a run makes and must not leave.

    Args:
        home: The plugin's folder (journals, leases, stand-in storage).
        runs: Folder of all results; this run's own folder is made in it, and is never an existing one.
        say: Gets a line for each earlier run that was cleaned up after, and where this run cannot clean up.

    Raises:
        ConfigError: One of the folders cannot be written, or has a name that cannot be written into files.

    Attributes:
        id: Name of the run everywhere.
        folder: Folder of the results, which is kept.
        scratch: Folder of temporary files and sockets, which is removed. Its path is short: sockets allow 107 bytes.
    """

    def __init__(self, home: Path, runs: Path, say: Callable[[str], None]) -> None:
        _check_name(home, runs)
        try:
            self._make(home, runs, say)
        except OSError as error:
            raise ConfigError(
                f"cannot be written: {error.strerror}",
                where=str(error.filename or home),
                todo="name folders that can: --kv-runs=FOLDER for results, PYTEST_KVCACHE_HOME=FOLDER for the rest",
            ) from None

    def _make(self, home: Path, runs: Path, say: Callable[[str], None]) -> None:
        journals = home / "journal"
        clean_up_after_the_dead(journals, say)
        self.id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        self.home = home
        self.storage_home = home / "storage"
        self.folder = runs / self.id
        self.scratch = Path(tempfile.gettempdir()) / f"kvc-{self.id}"
        self.ports = PortLeases(home / "ports")
        self._closed = False
        #: Whoever leaves by `os._exit` closes the run in one thread while the main thread boots in another.
        self._closing = threading.RLock()
        self._borrowed: list[Leader] = []
        self._say = say
        # Folders that may lie in a read-only place come first, so that nothing needs removing if one cannot be made.
        self.storage_home.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True)
        with signals.deferred():
            self.journal = Journal(journals, self.id)
            self.own_folder(self.scratch)
            self.scratch.mkdir(mode=0o700)

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Make something in the body and own it: neither an interruption nor the end of the run comes in between.

        Raises:
            RunError: The run has ended, so that nobody would end or remove what is made now.
        """
        with signals.deferred(), self._closing:
            if self._closed:
                raise RunError("nothing is started any more: the run has ended", where=f"run {self.id}")
            yield

    def own_folder(self, folder: Path) -> None:
        """Have `folder` removed at the end; to be called before it is made."""
        self.journal.add_folder(folder)

    def make_folder(self, folder: Path) -> None:
        """Make a folder that is removed at the end, recorded before it is there; an existing one is removed too.

        Raises:
            RunError: The run has ended.
        """
        with self.making():
            self.own_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)

    def own_process(self, leader: Leader) -> None:
        """Have a component ended at the latest at the end of the run."""
        self.journal.add_leader(leader)

    def borrow_process(self, leader: Leader) -> None:
        """Count the work of a process, and of all that it starts, as this run's; it is not ended with the run."""
        self._borrowed.append(leader)

    def return_process(self, leader: Leader) -> None:
        """Count the work of a borrowed process no more; do nothing where it is not borrowed."""
        self._borrowed = [each for each in self._borrowed if each != leader]

    @property
    def leaders(self) -> tuple[Leader, ...]:
        """First processes of all that does the run's work, its own and borrowed ones."""
        return (*self.journal.record.leaders, *self._borrowed)

    def own_containers(self) -> str:
        """Have all containers with this run's label removed at the end; to be called before the first is made.

        Returns:
            The address of the daemon that is to make them.

        Raises:
            ConfigError: DOCKER_HOST or the docker context cannot be used.
            RunError: The run has ended.
        """
        with self.making():
            if not self.journal.record.docker:
                self.journal.note_docker(containers.address())
            return self.journal.record.docker

    def note_shared_memory(self) -> None:
        """Record the shared memory of all components, in case this run is killed."""
        segments = processes.shared_memory(processes.members(self.journal.record.leaders))
        with self._closing:
            if not self._closed:
                self.journal.add_shared_memory(segments)

    @contextlib.contextmanager
    def leaving_nothing(self) -> Iterator[None]:
        """End what the body started and did not end, however the body ends: an interruption may come at any line."""
        before = list(self.journal.record.leaders)
        try:
            yield
        finally:
            with signals.deferred(), self._closing:
                left = [leader for leader in self.journal.record.leaders if leader not in before]
                if left and not self._closed:
                    self.end_processes(left)
                    self.remove_containers()

    def end_processes(self, leaders: list[Leader]) -> None:
        """End these components and all that they started, which takes at most about 7 s."""
        with signals.deferred(), self._closing:
            processes.end(leaders, grace_s=GRACE_S)
            if not self._closed and not processes.members(leaders):  # else the record keeps them until they are gone
                self.journal.drop_leaders(leaders)

    def close(self) -> None:
        """End what still runs, and remove what is temporary. A second call waits for the first, and does nothing."""
        with signals.deferred(), self._closing:
            if self._closed:
                return
            self._closed = True
            processes.end(self.journal.record.leaders, grace_s=GRACE_S)
            processes.remove_shared_memory(self.journal.record.shared_memory)
            kept = {folder: why for folder in self.journal.record.folders if (why := remove_tree(Path(folder)).kept)}
            for folder, why in kept.items():
                self._say(f"could not remove {folder}: {why} The next run tries again")
            self.ports.release()
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # succeeds only where nothing was measured or logged
            containers_gone = self.remove_containers()
            alive = processes.members(self.journal.record.leaders)
            if alive:
                self._say(f"processes of this run do not end, the next one tries again: {processes.numbers(alive)}")
            if containers_gone and not alive and not kept:
                self.journal.close()
            else:
                self.journal.abandon()

    def remove_containers(self) -> bool:
        """Remove the run's containers; return whether none is left, and say so where one may be."""
        host = self.journal.record.docker
        try:
            if host:
                containers.remove(self.id, host)
        except ConfigError as error:
            self._say(f"containers with the label {containers.LABEL}={self.id} may be left: {error}")
            return False
        return True


def _check_name(*folders: Path) -> None:
    """Check that the names of folders can be written into files.

    Raises:
        ConfigError: A name has bytes that Python could not read in this locale.
    """
    for folder in folders:
        try:
            str(folder).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"its name has characters that the encoding {sys.getfilesystemencoding()} of this session has not",
                where=str(folder),
                todo="set LC_ALL=C.UTF-8, and leave out PYTHONUTF8=0; or name a folder in plain letters",
            ) from None

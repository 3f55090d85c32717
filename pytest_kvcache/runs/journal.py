"""A record on disk of what a run has started, so that the next run can clean up after a killed one.

A run holds a file lock for as long as it lives; the kernel lets go of it however the run ends. A journal whose lock
can be taken belongs to a dead run: its processes, shared memory, folders and containers are removed, and then the
journal. A journal that cannot be read, or that another version wrote, is kept and reported each time: what it names may
still be there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.runs import containers, files, processes
from pytest_kvcache.runs.processes import Leader

#: Version 1 had no number, and times since the epoch in place of boot id and clock ticks.
VERSION = 2
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class Record:
    """What a run would leave if it died now.

    Args:
        run_id: Id of the run.
        boot_id: The kernel's id of the present start of the machine: processes of an earlier start are gone. "" where
            the kernel gives no such id; clock ticks alone then tell processes apart.
        leaders: First process of each component.
        folders: Folders to remove, with all content.
        shared_memory: Shared-memory files by inode.
        docker: The daemon that may have containers with the run's label (`containers.address`), "" where none was
            asked.
        version: Version of this layout.
    """

    run_id: str
    boot_id: str
    leaders: list[Leader] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    shared_memory: dict[str, int] = field(default_factory=dict)
    docker: str = ""
    version: int = VERSION

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_RECORD = TypeAdapter(Record)


class Journal:
    """The record of the present run.

    Args:
        folder: Folder of all journals.
        run_id: Id of the present run.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{run_id}.json"
        self._lock = FileLock(folder / f"{run_id}.lock")
        self._lock.acquire(timeout=0)
        self.record = Record(run_id=run_id, boot_id=boot_id())
        self._write()

    def add_folder(self, folder: Path) -> None:
        """Note a folder before it is made."""
        self.record.folders.append(str(folder.absolute()))
        self._write()

    def add_leader(self, leader: Leader) -> None:
        """Note a component's first process."""
        self.record.leaders.append(leader)
        self._write()

    def drop_leaders(self, leaders: list[Leader]) -> None:
        """Forget components that have ended."""
        self.record.leaders = [known for known in self.record.leaders if known not in leaders]
        self._write()

    def add_shared_memory(self, segments: dict[str, int]) -> None:
        """Note shared memory: once its processes are dead nothing else tells whose it is."""
        self.record.shared_memory |= segments
        self._write()

    def note_docker(self, host: str) -> None:
        """Note a daemon before it is asked for the first container."""
        self.record.docker = host
        self._write()

    def abandon(self) -> None:
        """Leave the record to the next run: not everything in it could be removed."""
        self._lock.release()

    def close(self) -> None:
        """Remove the record: everything in it is gone."""
        self._path.unlink(missing_ok=True)
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def _write(self) -> None:
        files.write_json(self._path, asdict(self.record))


def clean_up_after_the_dead(folder: Path, say: Callable[[str], None]) -> None:
    """Remove what killed runs left: exactly what their journals say, nothing else.

    Args:
        folder: Folder of all journals.
        say: Gets one line per dead run.
    """
    for path in sorted(folder.glob("*.json")):
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # the run lives
        with lock:
            if not path.exists():
                continue
            try:
                record = _read(path)
                said, done = _clean(record)
            except _UnreadableError as error:
                say(f"the journal of run {path.stem} {error}: what it left may still be there; remove {path} by hand")
                continue
            except ConfigError as error:
                say(f"containers of run {path.stem} may be left, and the next run looks again ({path}): {error}")
                continue
            say(said)
            if not done:
                continue
            path.unlink(missing_ok=True)
            files.partial_of(path).unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)


class _UnreadableError(Exception):
    """A journal does not say what its run left."""


def _clean(record: Record) -> tuple[str, bool]:
    """Remove what a dead run left; return what was done, and whether all of it is gone.

    Raises:
        ConfigError: The run had containers, and their daemon does not answer.
    """
    same_boot = record.boot_id == boot_id()
    left = processes.members(record.leaders) if same_boot else []
    if same_boot:
        processes.end(record.leaders, grace_s=2.0)
        processes.remove_shared_memory(record.shared_memory)
    removed = f", {containers.remove(record.run_id, record.docker)} containers removed" if record.docker else ""
    # Looked at after the containers are gone: the daemon may end processes that this user may not end.
    if same_boot and (alive := processes.members(record.leaders)):
        return f"processes of run {record.run_id}, which was killed, do not end: {processes.numbers(alive)}", False
    removals = {folder: files.remove_tree(Path(folder)) for folder in record.folders}
    if kept := [f"{folder} ({removal.kept})" for folder, removal in removals.items() if removal.kept]:
        return f"folders of run {record.run_id}, which was killed, cannot be removed: {', '.join(kept)}", False
    told = (
        f"cleaned up after run {record.run_id}, which was killed: "
        f"{len(left)} processes ended, {sum(each.was_there for each in removals.values())} folders removed{removed}"
    )
    return told, True


def _read(path: Path) -> Record:
    """Return what a journal says.

    Raises:
        _UnreadableError: The journal is empty or damaged, or another version wrote it.
    """
    try:
        text = path.read_bytes()
        data: Any = from_json(text)
    except (ValueError, OSError) as error:
        empty = path.stat().st_size == 0
        raise _UnreadableError("is empty" if empty else f"cannot be read ({error!s:.80})") from None
    version = data.get("version", 1) if isinstance(data, dict) else VERSION
    if version != VERSION:
        raise _UnreadableError(f"was written by another version of pytest-kvcache (layout {version!s:.20})")
    try:
        return _RECORD.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise _UnreadableError(f"cannot be read ({key:.80}: {first['msg']:.80})") from None


def boot_id() -> str:
    """Return the kernel's id of the present start of the machine, "" where it is not told."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""

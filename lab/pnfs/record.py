"""What a lab would leave on the host if its processes died now, and how it is removed.

The record is written before what it names is made. A lock that the kernel releases says whether the lab lives: it is
held by both halves of the lab's keeper (`keeper.py`), and free once both are gone, however they went.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lab.pnfs import network
from lab.pnfs.guest import boot_id
from pytest_kvcache.errors import SetupError
from pytest_kvcache.runs import files
from pytest_kvcache.runs.processes import Leader, is_same

MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")
_PREFIX = "kvlab-"
#: A lab that never came to its record holds nothing but its folder; one that is being made is younger than this (s).
_UNBORN_S = 60.0


@dataclass(frozen=True)
class Record:
    """What a lab has made.

    Args:
        id: Name of the lab.
        boot_id: The host kernel's id of the start in which it was made: of an earlier start only the folder is left.
        namespace: Name of its network namespace.
        keeper: Process that ends the lab in good order when it gets SIGTERM; None before there is one.
        max_map_count: vm.max_map_count as it was before any lab raised it; 0 where this lab did not.
    """

    id: str
    boot_id: str
    namespace: str
    keeper: Leader | None = None
    max_map_count: int = 0

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_RECORD = TypeAdapter(Record)


class Held:
    """A lab's folder and the lock on it, held until the process ends or lets go.

    Args:
        folder: The lab's folder.
        descriptor: Open file of the lock.
        record: What the lab has made so far.
    """

    def __init__(self, folder: Path, descriptor: int, record: Record) -> None:
        self.folder = folder
        self._descriptor = descriptor
        self.record = record

    @classmethod
    def make(cls, runs: Path, name: str) -> Held:
        """Make the folder of a new lab, with its lock held and its record written."""
        folder = runs / name
        folder.mkdir(parents=True, mode=0o700)
        held = cls(folder, _open(folder), Record(name, boot_id(), f"{_PREFIX}{name}"))
        fcntl.flock(held._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.note()
        return held

    @classmethod
    def of_dead(cls, folder: Path) -> Held | None:
        """Return the folder of a lab that is dead, with its lock held; None where the lab lives.

        Raises:
            SetupError: The record of a dead lab cannot be read.
        """
        try:
            descriptor = _open(folder)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if not folder.exists() or _is_unborn(folder):
            os.close(descriptor)
            return None
        return cls(folder, descriptor, read(folder))

    def note(self, **changes: object) -> None:
        """Change and write the record."""
        self.record = replace(self.record, **changes)  # type: ignore[arg-type]
        files.write_json(self.folder / "record.json", asdict(self.record))

    def release(self) -> None:
        """Let go of the lock."""
        os.close(self._descriptor)


def read(folder: Path) -> Record:
    """Return the record of a lab; one that was never written names nothing but the folder's own name.

    Raises:
        SetupError: It cannot be read.
    """
    path = folder / "record.json"
    try:
        return _RECORD.validate_json(path.read_bytes())
    except FileNotFoundError:
        return Record(folder.name, "", f"{_PREFIX}{folder.name}")
    except ValidationError as error:
        raise SetupError(
            f"cannot be read ({error.errors()[0]['msg']:.80})",
            where=str(path),
            todo=f"what the lab left may still be there: see `ip netns`, then remove {folder} by hand",
        ) from None


def is_alive(folder: Path) -> bool:
    """Return whether a lab lives: whether somebody holds its lock."""
    try:
        descriptor = _open(folder, make=False)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def living(runs: Path) -> list[Path]:
    """Return the folders of all labs that live."""
    return [folder for folder in sorted(runs.glob("*")) if folder.is_dir() and is_alive(folder)]


def clean(held: Held) -> list[str]:
    """Remove all that a lab has made on the host, and then its folder; return what could not be removed."""
    record = held.record
    left = []
    if record.boot_id in {"", boot_id()}:
        left = [f"process {pid} in {record.namespace}" for pid in network.remove(record.namespace)]
        if record.max_map_count:
            _lower(held, record.max_map_count)
    shutil.rmtree(held.folder, ignore_errors=True)
    if held.folder.exists():
        left.append(str(held.folder))
    held.release()
    return left


def clean_up_after_the_dead(runs: Path, say: Callable[[str], None]) -> None:
    """Remove what labs left whose processes were killed.

    Args:
        runs: Folder of all labs.
        say: Gets a line for each of them.
    """
    for folder in sorted(runs.glob("*")):
        try:
            held = Held.of_dead(folder) if folder.is_dir() else None
        except SetupError as error:
            say(str(error))
            continue
        if held is not None:
            left = clean(held)
            say(
                f"cleaned up after lab {folder.name}, which was killed" + (f"; left: {', '.join(left)}" if left else "")
            )


def raise_max_map_count(held: Held, count: int) -> None:
    """Raise the host's vm.max_map_count for as long as the lab is up; a larger one stays."""
    with _one_at_a_time(held.folder.parent):
        now = int(MAX_MAP_COUNT.read_text())
        if now >= count:
            # Another lab may have raised it, and may end before this one does.
            others = [read(folder).max_map_count for folder in living(held.folder.parent) if folder != held.folder]
            held.note(max_map_count=min((was for was in others if was), default=0))
            return
        held.note(max_map_count=now)
        MAX_MAP_COUNT.write_text(str(count))


def keeper_of(record: Record) -> int | None:
    """Return the process that ends the lab, None where there is none any more."""
    return record.keeper.pid if record.keeper and is_same(record.keeper) else None


def _lower(held: Held, was: int) -> None:
    with _one_at_a_time(held.folder.parent):
        others = [folder for folder in living(held.folder.parent) if folder != held.folder]
        if not any(read(folder).max_map_count for folder in others):
            MAX_MAP_COUNT.write_text(str(was))


@contextmanager
def _one_at_a_time(runs: Path) -> Iterator[None]:
    descriptor = os.open(runs.parent / "host.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open(folder: Path, *, make: bool = True) -> int:
    return os.open(folder / "lock", os.O_RDWR | (os.O_CREAT if make else 0), 0o600)


def _is_unborn(folder: Path) -> bool:
    """Return whether a lab may be between making its folder and taking its lock."""
    if (folder / "record.json").exists():
        return False
    try:
        return time.time() - folder.stat().st_mtime < _UNBORN_S
    except FileNotFoundError:
        return True

"""What an NFS mount did between two readings of its counters, and whether it was the same mount all the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_kvcache.errors import RunError
from pytest_kvcache.storage.mountstats import COUNTED_BYTES, Operation, Reading

#: By how much (s) the age of a mount, in whole seconds, may fall behind the clock.
_AGE_S = 2.0


@dataclass(frozen=True)
class Delta:
    """What a mount did between two readings.

    Args:
        seconds: Time between the readings, by the mount's own age.
        pnfs_reads: READs that were tried by a layout.
        pnfs_writes: WRITEs that were tried by a layout.
        delays: Answers that asked to come again later.
        bytes: Counts by name, as in `Reading`.
        operations: Operations by name; only those that were used.
    """

    seconds: int
    pnfs_reads: int
    pnfs_writes: int
    bytes: Mapping[str, int]
    operations: Mapping[str, Operation]
    delays: int = 0

    def operation(self, name: str) -> Operation:
        """Return the counters of an operation by its exact name, zeros where it was not used."""
        return self.operations.get(name, Operation())


def delta(before: Reading, after: Reading) -> Delta:
    """Return what happened between two readings of one mount.

    Raises:
        RunError: The readings are of two mounts: the source differs, or it was mounted anew and its counters restarted.
    """
    if _is_anew(before, after):
        changed = changed_options(before, after)
        raise RunError(
            "was mounted anew "
            + (f"with other options ({changed}) " if changed else "")
            + "between two readings of its counters",
            where=str(after.point),
            todo="keep the file system mounted during a run (automounters end an idle mount)",
        )
    operations = {name: _less(op, before.operation(name)) for name, op in after.operations.items()}
    return Delta(
        seconds=after.age_s - before.age_s,
        pnfs_reads=after.pnfs_reads - before.pnfs_reads,
        pnfs_writes=after.pnfs_writes - before.pnfs_writes,
        delays=after.delays - before.delays,
        bytes={n: after.bytes.get(n, 0) - before.bytes.get(n, 0) for n in COUNTED_BYTES},
        operations={name: op for name, op in operations.items() if op.ops or op.errors},
    )


def changed_options(before: Reading, after: Reading) -> str:
    """Return which mount options differ between two readings, "" for none: `proto rdma -> tcp, +sync, -noac`."""
    old, new = before.options, after.options
    gone = [f"-{_option(name, old)}" for name in old if name not in new]
    added = [f"+{_option(name, new)}" for name in new if name not in old]
    other = [f"{name} {old[name]} -> {new[name]}" for name in old if name in new and old[name] != new[name]]
    return ", ".join([*other, *added, *gone])


def _option(name: str, options: Mapping[str, str]) -> str:
    return f"{name}={options[name]}" if options[name] else name


def _is_anew(before: Reading, after: Reading) -> bool:
    """Return whether counters began anew in between, as they do with every mount.

    A new mount that has already counted more than the old one had is told by its age, which is less than the time
    between the readings.
    """
    counters = [(before.bytes.get(n, 0), after.bytes.get(n, 0)) for n in COUNTED_BYTES]
    counters += [(o.ops, after.operation(n).ops) for n, o in before.operations.items()]
    if (before.source, before.point) != (after.source, after.point) or any(new < old for old, new in counters):
        return True
    aged_s = after.age_s - before.age_s
    if before.read_at_s is None or after.read_at_s is None:
        return aged_s < 0
    return aged_s < after.read_at_s - before.read_at_s - _AGE_S or aged_s < 0


def _less(after: Operation, before: Operation) -> Operation:
    return Operation(*(getattr(after, n) - getattr(before, n) for n in Operation.__dataclass_fields__))

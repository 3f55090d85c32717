"""The GPUs of a boot: their sampler started and ended beside the pair, what it found handed to each load's judgement.

Nothing of it fails a run: what cannot be sampled is a note, in `run.json` and in the report.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvcache.proof.gpus import GpuLoad
from pytest_kvcache.runs import processes, signals
from pytest_kvcache.runs.files import replace_whole
from pytest_kvcache.runs.processes import Leader
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle, Starter
from pytest_kvcache.telemetry.gpu import readings
from pytest_kvcache.telemetry.gpu.readings import Readings, Span
from pytest_kvcache.telemetry.gpu.summary import summarize

#: The table, a row a sample and GPU; and the sampler's lines, which are left where it could not be written.
TABLE, LINES = "gpus.parquet", "gpus.jsonl"
#: How the sampler is started; its arguments come after.
SAMPLER = (sys.executable, "-m", "pytest_kvcache.telemetry.gpu.sampler")
#: What stands for no GPU at all in `CUDA_VISIBLE_DEVICES` and its like.
_NO_GPU = frozenset({"", "-1", "none", "void", "nodevfiles"})
#: A load with fewer samples than this share of its seconds says so.
_ENOUGH = 0.5


@dataclass(frozen=True)
class BootGpus:
    """What the GPUs of one boot did, over all its loads.

    Args:
        label: Tier and boot, for outputs.
        found: Of each GPU, and what could not be looked at. Errors are those of the whole boot.
    """

    label: str
    found: GpuLoad


@dataclass
class GpuWatch:
    """The sampler of one boot.

    Args:
        folder: Of the boot.
        handle: The running sampler, None where there is none.
        notes: What was known from the start not to be looked at.
        leaders: Returns the leaders of the run's components at present.
    """

    folder: Path
    handle: Handle | None = None
    notes: tuple[str, ...] = ()
    leaders: Callable[[], Iterable[Leader]] = tuple
    _spans: list[Span] = field(default_factory=list)

    def during(self, span: Span) -> GpuLoad:
        """Return what the GPUs did in a load that is over, and the errors of all that came before it in the boot."""
        if self.handle is None:
            return GpuLoad(notes=self.notes)
        self._spans.append(span)
        found = self._read()
        gpus = summarize(found, [span], until_s=span.end_s)
        few = [g for g in gpus if g.samples < _ENOUGH * math.floor(span.end_s - span.start_s)]
        return GpuLoad(
            gpus,
            (
                *found.notes,
                *(f"{g.gpu}: only {g.samples} samples in {span.end_s - span.start_s:.0f} s" for g in few),
            ),
            own_pids=self._own_pids(),
        )

    def _own_pids(self) -> frozenset[int]:
        leaders = list(self.leaders())
        return frozenset({each.pid for each in leaders} | {each.pid for each in processes.members(leaders)})

    def whole(self) -> GpuLoad:
        """Return what the GPUs did in all loads of the boot, in all of the boot where none came to its end."""
        found = self._read()
        spans = self._spans or [Span(0, -math.inf, math.inf)]
        return GpuLoad(summarize(found, spans, until_s=math.inf), found.notes)

    def save(self) -> str:
        """Make the lines a table; return why that was not possible, "" where it was."""
        lines = self.folder / LINES
        if not lines.exists():
            return ""
        try:
            frame = readings.to_frame(readings.read(lines), self._spans)
            replace_whole(self.folder / TABLE, lambda partial: frame.to_parquet(partial, index=False))
            lines.unlink()
        except (OSError, ValueError, TypeError) as error:
            return f"samples of GPUs are left as lines in {lines}: {error}"
        return ""

    def _read(self) -> Readings:
        try:
            found = readings.read(self.folder / LINES)
        except OSError as error:
            found = Readings(notes=(f"samples of GPUs cannot be read: {error}",))
        code = self.handle.exit_code() if self.handle else None
        if self.handle and not found.notes:
            if code is not None:
                found = found.with_notes(f"the sampler of GPUs ended by itself (exit code {code}): {self.handle.log}")
            elif not found.gpus:  # the driver may hang
                why = "the sampler has found no GPU yet, and says nothing of why"
                found = found.with_notes(f"no GPU telemetry: {why}: {self.handle.log}")
        return found.with_notes(*self.notes)


def named(components: Iterable[Component]) -> tuple[str, ...]:
    """Return the GPUs of this machine that servers are given, as `CUDA_VISIBLE_DEVICES` names them.

    None are returned where servers serve on CPUs, or on other machines.
    """
    here = [each for each in components if not each.place]
    names = [name.strip() for each in here for name in each.env.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return tuple(dict.fromkeys(name for name in names if name.lower() not in _NO_GPU))


@contextlib.contextmanager
def watched(
    identifiers: Sequence[str] | None,
    launcher: Starter,
    folder: Path,
    *,
    label: str,
    tell: Callable[[BootGpus], object],
    leaders: Callable[[], Iterable[Leader]] = tuple,
) -> Iterator[GpuWatch]:
    """Sample GPUs while the body runs, however it ends.

    Args:
        identifiers: Which (see `named`); none starts nothing, None samples all of the machine.
        launcher: Starts processes of this machine; that of containers is not needed, since NVML is the machine's.
        folder: Of the boot: gets the table.
        label: Tier and boot, for outputs.
        tell: Gets what was found, where GPUs were to be sampled.
        leaders: Returns the leaders of the run's components at present: other processes on the GPUs are strangers.
    """
    if identifiers is not None and not identifiers:
        yield GpuWatch(folder)
        return
    watch = _started(identifiers, launcher, folder)
    watch.leaders = leaders
    try:
        yield watch
    finally:
        with signals.deferred():
            found = watch.whole()
            if watch.handle is not None:
                launcher.stop([watch.handle])
            if problem := watch.save():
                found = GpuLoad(found.gpus, (*found.notes, problem))
            tell(BootGpus(label, found))


def _started(identifiers: Sequence[str] | None, launcher: Starter, folder: Path) -> GpuWatch:
    argv = (*SAMPLER, str((folder / LINES).resolve()), *(identifiers or ()))
    try:
        handle = launcher.start(Component(name="gpus", argv=argv, stage="load"), folder / "logs")
    except OSError as error:
        return GpuWatch(folder, notes=(f"no GPU telemetry: the sampler could not be started: {error}",))
    return GpuWatch(folder, handle)

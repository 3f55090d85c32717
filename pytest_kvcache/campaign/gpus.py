"""The GPUs of a boot: a sampler on each machine, started and ended beside the pair, and what a load's judgement gets.

Nothing of it fails a run: what cannot be sampled is a note, in `run.json` and in the report.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.proof.gpus import GpuLoad
from pytest_kvcache.runs import processes, signals
from pytest_kvcache.runs.files import replace_whole
from pytest_kvcache.runs.processes import Leader
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle, Starter
from pytest_kvcache.serving.launchers.on_nodes import ServerNode
from pytest_kvcache.serving.pair import ServingPair
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
_NOT_STARTED = "no GPU telemetry: the sampler could not be started"


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
class Sampler:
    """The sampler of one machine.

    Args:
        lines: File here that its lines come into.
        handle: The running process, None where there is none.
        notes: What was known from the start not to be looked at.
        node: The machine, None for this one.
        ahead_s: The machine's CLOCK_MONOTONIC less this one's.
    """

    lines: Path
    handle: Handle | None = None
    notes: tuple[str, ...] = ()
    node: ServerNode | None = None
    ahead_s: float = 0.0

    def read(self) -> Readings:
        """Return what was sampled so far, and what could not be."""
        if self.node is not None:
            self.node.bring()
        try:
            found = readings.read(self.lines)
        except OSError as error:
            found = Readings(notes=(f"samples of GPUs cannot be read: {error}",))
        if self.handle and not found.notes:
            found = found.with_notes(*self._problems(self.handle, found))
        return self._placed(found.with_notes(*self.notes))

    def sampled(self) -> Readings:
        """Return what it has written.

        Raises:
            OSError: It cannot be read.
        """
        return self._placed(readings.read(self.lines))

    def stop(self, here: Starter) -> None:
        """End it."""
        if self.handle is not None:
            (self.node or here).stop([self.handle])

    def _placed(self, found: Readings) -> Readings:
        return found if self.node is None else found.of_node(self.node.name, self.ahead_s)

    def _problems(self, handle: Handle, found: Readings) -> list[str]:
        try:
            code = handle.exit_code()
        except KvCacheError as error:
            return [f"nothing was sampled any more: {error.what}"]
        if code is not None:
            return [f"the sampler of GPUs ended by itself (exit code {code}): {handle.log}"]
        if not found.gpus:  # the driver may hang
            return [f"no GPU telemetry: the sampler has found no GPU yet, and says nothing of why: {handle.log}"]
        return []


@dataclass
class GpuWatch:
    """The samplers of one boot.

    Args:
        folder: Of the boot.
        samplers: One for each machine with GPUs of servers.
        leaders: Returns the leaders of the run's components on this machine at present.
    """

    folder: Path
    samplers: tuple[Sampler, ...] = ()
    leaders: Callable[[], Iterable[Leader]] = tuple
    _spans: list[Span] = field(default_factory=list)

    def during(self, span: Span) -> GpuLoad:
        """Return what the GPUs did in a load that is over, and the errors of all that came before it in the boot."""
        found = self._read()
        if not any(each.handle for each in self.samplers):
            return GpuLoad(notes=found.notes)
        self._spans.append(span)
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

    def _own_pids(self) -> dict[str, frozenset[int]]:
        found: dict[str, frozenset[int]] = {}
        for each in self.samplers:
            if each.node is None:
                found[""] = processes.own_pids(list(self.leaders()))
            else:
                with contextlib.suppress(KvCacheError):  # it is lost, which the load says
                    name = each.node.name
                    found[name] = found.get(name, frozenset()) | each.node.own_pids()
        return found

    def whole(self) -> GpuLoad:
        """Return what the GPUs did in all loads of the boot, in all of the boot where none came to its end."""
        found = self._read()
        spans = self._spans or [Span(0, -math.inf, math.inf)]
        return GpuLoad(summarize(found, spans, until_s=math.inf), found.notes)

    def save(self) -> str:
        """Make the lines of all machines one table; return why that was not possible, "" where it was."""
        there = [each for each in self.samplers if each.lines.exists()]
        if not there:
            return ""
        try:
            found = {each.lines: each.sampled() for each in there}
            frame = readings.to_frame(_together(found.values()), self._spans)
            replace_whole(self.folder / TABLE, lambda partial: frame.to_parquet(partial, index=False))
            for each in there:
                # The lines of a node are its sampler's log: notes name it.
                if each.node is None or (found[each.lines].gpus and not found[each.lines].notes):
                    each.lines.unlink()
        except (OSError, ValueError, TypeError) as error:
            return f"samples of GPUs are left as lines in {', '.join(str(each.lines) for each in there)}: {error}"
        return ""

    def _read(self) -> Readings:
        return _together(each.read() for each in self.samplers)


def _together(each: Iterable[Readings]) -> Readings:
    return functools.reduce(operator.or_, each, Readings())


def named(components: Iterable[Component], place: str = "") -> tuple[str, ...]:
    """Return the GPUs that servers are given at a place, as `CUDA_VISIBLE_DEVICES` names them.

    None are returned where servers serve on CPUs.

    Args:
        components: Of the pair.
        place: Where, "" for this machine.
    """
    there = [each for each in components if each.place == place]
    names = [name.strip() for each in there for name in each.env.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return tuple(dict.fromkeys(name for name in names if name.lower() not in _NO_GPU))


def on_nodes(pair: ServingPair) -> list[tuple[ServerNode, tuple[str, ...]]]:
    """Return the GPUs that servers are given on other machines, as `CUDA_VISIBLE_DEVICES` names them there."""
    nodes = () if pair.nodes is None else pair.nodes.each
    found = [(node, named(pair.plan.components, node.place)) for node in nodes]
    return [(node, names) for node, names in found if names]


@contextlib.contextmanager
def watched(
    identifiers: Sequence[str] | None,
    launcher: Starter,
    folder: Path,
    *,
    label: str,
    tell: Callable[[BootGpus], object],
    leaders: Callable[[], Iterable[Leader]] = tuple,
    nodes: Iterable[tuple[ServerNode, Sequence[str]]] = (),
) -> Iterator[GpuWatch]:
    """Sample GPUs while the body runs, however it ends.

    Args:
        identifiers: Which of this machine (see `named`); none starts nothing here, None samples all of it.
        launcher: Starts processes of this machine; that of containers is not needed, since NVML is the machine's.
        folder: Of the boot: gets the table.
        label: Tier and boot, for outputs.
        tell: Gets what was found, where GPUs were to be sampled.
        leaders: Returns the leaders of the run's components at present: other processes on the GPUs are strangers.
        nodes: Which GPUs of which other machines.
    """
    watch = GpuWatch(folder, leaders=leaders)
    try:
        if identifiers is None or identifiers:
            with signals.deferred():
                watch.samplers += (_started(identifiers, launcher, folder),)
        for node, names in nodes:
            watch.samplers += (_started_on(node, names, folder),)
        yield watch
    finally:
        if watch.samplers:
            with signals.deferred():
                found = watch.whole()
                for each in watch.samplers:
                    each.stop(launcher)
                if problem := watch.save():
                    found = GpuLoad(found.gpus, (*found.notes, problem))
                tell(BootGpus(label, found))


def _started(identifiers: Sequence[str] | None, launcher: Starter, folder: Path) -> Sampler:
    lines = folder / LINES
    argv = (*SAMPLER, str(lines.resolve()), *(identifiers or ()))
    try:
        handle = launcher.start(Component(name="gpus", argv=argv, stage="load"), folder / "logs")
    except OSError as error:
        return Sampler(lines, notes=(f"{_NOT_STARTED}: {error}",))
    return Sampler(lines, handle)


def _started_on(node: ServerNode, identifiers: Sequence[str], folder: Path) -> Sampler:
    """Start the sampler of a node, whose lines are its output: that is brought here while it runs."""
    name, logs = f"gpus-{node.place}", folder / "logs"
    lines = logs / f"{name}.log"
    argv = (str(node.python), *SAMPLER[1:], "/dev/stdout", *identifiers)
    try:
        ahead_s = node.clock_ahead_s()
        handle = node.start(Component(name=name, argv=argv, stage="load", place=node.place), logs)
    except (OSError, KvCacheError) as error:
        return Sampler(lines, notes=(f"{_NOT_STARTED}: {error}",), node=node)
    return Sampler(lines, handle, node=node, ahead_s=ahead_s)

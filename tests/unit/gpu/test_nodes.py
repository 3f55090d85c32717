"""Samplers on other machines: their lines, clocks, processes and failures, as a boot and its loads get them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import pytest

from pytest_kvcache.campaign import gpus
from pytest_kvcache.campaign.gpus import BootGpus, watched
from pytest_kvcache.errors import BootError
from pytest_kvcache.report.gpus import gpu_lines
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle
from pytest_kvcache.telemetry.gpu.readings import Gpu, GpuProcess, Sample, Span, Users, Xid, line_of
from tests.unit.gpu.make import GPU, START_S, sample
from tests.unit.gpu.test_watch import Ran, Starter

Line = Gpu | Sample | Users | Xid | str
KV_1, KV_2 = (Gpu("0", f"GPU-{name}", index=0, name="NVIDIA H100") for name in ("kv-1", "kv-2"))
SPAN = Span(3500, START_S, START_S + 4)


class LostRan(Ran):
    """A handle of a component whose node was lost."""

    def exit_code(self) -> int | None:
        """Raise, as a component of a lost node does."""
        raise BootError("node kv-1 (10.0.0.1) was lost", where="x")


@dataclass
class Node:
    """A machine whose sampler writes what it is told once its output is asked for."""

    host: str
    lines: Sequence[Line] = ()
    ahead_s: float = 0.0
    pids: frozenset[int] = frozenset()
    lost: bool = False
    python: Path = Path("/node/python")
    started: list[Component] = field(default_factory=list)
    stopped: int = 0
    _file: Path | None = None

    @property
    def name(self) -> str:
        """As outputs have it."""
        return f"{self.host} (10.0.0.{self.host[-1]})"

    @property
    def place(self) -> str:
        """The host's name."""
        return self.host

    def start(self, component: Component, logs: Path) -> Handle:
        """Begin with an empty log."""
        logs.mkdir(exist_ok=True)
        self.started.append(component)
        self._file = logs / f"{component.name}.log"
        self._file.touch()
        return (LostRan if self.lost else Ran)(component, self._file)

    def stop(self, handles: list[Handle]) -> None:
        """Count."""
        self.stopped += len(handles)

    def bring(self) -> None:
        """Have all lines here."""
        if self._file is not None:
            self._file.write_text("".join(f"{line_of(each)}\n" for each in self.lines))

    def clock_ahead_s(self) -> float:
        """Return what the test says."""
        return self.ahead_s

    def own_pids(self) -> frozenset[int]:
        """Return what the test says."""
        if self.lost:
            raise BootError("the node was lost")
        return self.pids


class Silent(Node):
    """A machine that does not answer."""

    def clock_ahead_s(self) -> float:
        """Raise, as asking it does."""
        raise BootError("the node was lost: it does not answer within 20 s")


def at(gpu: Gpu, ahead_s: float, *, hot: bool = False) -> list[Line]:
    """Return a GPU and a load's samples of it, by a clock that is ahead of this machine's."""
    found = [sample(n, uuid=gpu.uuid, clock_reasons=0x40 if hot else 0, sm_clock_mhz=1400) for n in range(5)]
    return [gpu, *(replace(each, monotonic_s=each.monotonic_s + ahead_s) for each in found)]


def test_gpus_of_all_machines_are_one_table(tmp_path: Path) -> None:
    """Samples stand on this machine's clock beside their node, and a node's GPU is judged and named with it."""
    nodes = [Node("kv-1", at(KV_1, 1e6), ahead_s=1e6), Node("kv-2", at(KV_2, -50, hot=True), ahead_s=-50)]
    here, told = Starter([GPU, *(sample(n) for n in range(5))]), list[BootGpus]()
    asked = [(node, ("0",)) for node in nodes]
    with watched(("4",), here, tmp_path, label="pnfs boot-1", tell=told.append, nodes=asked) as watch:
        found = watch.during(SPAN)
    assert found.suspicions == [
        "GPU 0 NVIDIA H100 of node kv-2 (10.0.0.2) throttled in 5 of 5 busy samples (100%): HW thermal slowdown in 5; "
        "SM clock 1400 MHz (median)"
    ]
    assert [each["gpu"]["node"] for each in found.facts()["gpus"]["each"]] == ["", *(node.name for node in nodes)]
    table = pd.read_parquet(tmp_path / "gpus.parquet")
    assert table["node"].unique().tolist() == ["", "kv-1 (10.0.0.1)", "kv-2 (10.0.0.2)"]
    assert (table["context_tokens"] == 3500).all()
    assert table.groupby("node")["since_start_s"].apply(list).tolist() == [[0, 1, 2, 3, 4]] * 3
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["gpus.parquet"]
    assert [here.stopped, *(node.stopped for node in nodes)] == [1, 1, 1]
    (argv,) = [each.argv for each in nodes[0].started]
    assert argv == ("/node/python", *gpus.SAMPLER[1:], "/dev/stdout", "0")
    (boot,) = told
    assert sum("of node kv-" in line for line in gpu_lines([boot])) == 2


def test_process_numbers_are_those_of_their_node(tmp_path: Path) -> None:
    """A stranger on one node may have the number that a server has on the other, and is one all the same."""
    on = {gpu: Users(START_S, gpu.uuid, (GpuProcess(10, "a", 10), GpuProcess(20, "b", 20))) for gpu in (KV_1, KV_2)}
    nodes = [
        Node("kv-1", [*at(KV_1, 0), on[KV_1]], pids=frozenset({10})),
        Node("kv-2", [*at(KV_2, 0), on[KV_2]], pids=frozenset({20})),
    ]
    asked = [(node, ("0",)) for node in nodes]
    with watched((), Starter(), tmp_path, label="x", tell=lambda _: None, nodes=asked) as watch:
        found = watch.during(SPAN)
    assert [line.split(";")[0] for line in found.disturbances] == [
        "other processes are on GPU 0 NVIDIA H100 of node kv-1 (10.0.0.1): 20 b",
        "other processes are on GPU 0 NVIDIA H100 of node kv-2 (10.0.0.2): 10 a",
    ]


@pytest.mark.parametrize(
    ("node", "note", "rows"),
    [
        (
            Node("kv-1", ["no GPU telemetry: NVML: Shared Library Not Found"]),
            "node kv-1 (10.0.0.1): no GPU telemetry: NVML: Shared Library Not Found",
            0,
        ),
        (
            Node("kv-1", at(KV_1, 0), lost=True),
            "node kv-1 (10.0.0.1): nothing was sampled any more: node kv-1 (10.0.0.1) was lost [x]",
            5,
        ),
        (
            Silent("kv-1"),
            "node kv-1 (10.0.0.1): no GPU telemetry: the sampler could not be started: the node was lost: it does not "
            "answer within 20 s",
            0,
        ),
    ],
    ids=["no NVML", "lost under way", "silent from the start"],
)
def test_a_node_that_fails_is_a_note(tmp_path: Path, node: Node, note: str, rows: int) -> None:
    """What one node does not tell is a note with its name; what came stays, and the other node's GPUs are judged."""
    told: list[BootGpus] = []
    asked = [(node, ("0",)), (Node("kv-2", at(KV_2, 0)), ("0",))]
    with watched((), Starter(), tmp_path, label="x", tell=told.append, nodes=asked) as watch:
        found = watch.during(SPAN)
    (said,) = found.notes
    assert said.startswith(note.partition(" [")[0])
    assert (found.faults, found.suspicions) == ([], [])
    table = pd.read_parquet(tmp_path / "gpus.parquet")
    assert table["node"].value_counts().to_dict() == {"kv-2 (10.0.0.2)": 5} | ({node.name: rows} if rows else {})
    assert any(said in line for line in gpu_lines(told))


def test_which_gpus_servers_are_given_where() -> None:
    """A place's GPUs are those of its servers; a place on CPUs has none."""
    given = {"kv-1": "4,5", "kv-2": "0", "": "7", "kv-3": ""}
    servers = [
        Component("vllm", (), "servers", {"CUDA_VISIBLE_DEVICES": names}, place=at) for at, names in given.items()
    ]
    found = {place: gpus.named(servers, place) for place in given}
    assert found == {"kv-1": ("4", "5"), "kv-2": ("0",), "": ("7",), "kv-3": ()}

"""What each GPU did in a load, and what follows for the run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.proof.gpus import CAPPED_SHARE, GpuLoad
from pytest_kvcache.telemetry.gpu import reasons
from pytest_kvcache.telemetry.gpu.readings import (
    Gpu,
    GpuProcess,
    Readings,
    Sample,
    Span,
    Users,
    Xid,
    line_of,
    read,
    to_frame,
)
from pytest_kvcache.telemetry.gpu.summary import summarize
from tests.unit.gpu.make import GPU, START_S, load, sample, samples, summary

NAME = "GPU 4 NVIDIA H100 80GB HBM3"
#: Every bit with its constant's name without the prefix, and whether any sample of it makes times doubtful.
BITS = [
    ("GpuIdle", "idle", False),
    ("ApplicationsClocksSetting", "application clocks setting", False),
    ("SwPowerCap", "SW power cap", False),
    ("HwSlowdown", "HW slowdown", False),
    ("SyncBoost", "sync boost", False),
    ("SwThermalSlowdown", "SW thermal slowdown", True),
    ("HwThermalSlowdown", "HW thermal slowdown", True),
    ("HwPowerBrakeSlowdown", "HW power brake slowdown", True),
    ("DisplayClockSetting", "display clock setting", False),
    ("BoardLimit", "board limit", False),
    ("Reliability", "reliability limit", False),
]


@pytest.mark.parametrize(("constant", "name", "throttles"), BITS)
def test_each_reason_by_its_constant(constant: str, name: str, throttles: bool) -> None:
    """Bits are the library's constants under both names; one sample of ten is suspect for heat and power brake only."""
    names = (f"nvmlClocks{kind}Reason{constant}" for kind in ("Event", "Throttle"))
    (bit,) = {int(getattr(pynvml, each)) for each in names if hasattr(pynvml, each)}
    assert reasons.names(bit) == [name]
    found = load(samples([bit] + [0] * 9))
    assert bool(found.suspicions) == throttles
    if throttles:
        (said,) = found.suspicions
        assert said == f"{NAME} throttled in 1 of 10 busy samples (10%): {name} in 1; SM clock 1980 MHz (median)"


def test_every_constant_of_the_library_has_a_name() -> None:
    """No bit that nvidia-ml-py knows is without a name."""
    for mask in (pynvml.nvmlClocksEventReasonAll, pynvml.nvmlClocksThrottleReasonAll):
        assert not any(name.startswith("bit ") for name in reasons.names(mask))


@given(st.integers(0, 2**64 - 1))
def test_a_mask_is_all_of_its_names(mask: int) -> None:
    """Each bit that is set has one name, known or not."""
    assert len(reasons.names(mask)) == mask.bit_count()
    assert len(set(reasons.names(mask))) == mask.bit_count()


@pytest.mark.parametrize(
    ("masks", "count"),
    [
        ([0x8, 0, 0, 0x8, 0], 0),  # at changes of clocks
        ([0, 0x8, 0x8, 0, 0], 1),
        ([0x8, 0x8, 0x8, 0x8, 0], 3),
        ([0x48, 0, 0x88, 0, 0], 2),  # with its cause beside it
        ([0x8, 0x9, 0x8, 0, 0], 0),  # idle between
    ],
)
def test_a_bare_hw_slowdown_needs_two_samples_in_a_row(masks: list[int], count: int) -> None:
    """NVML gives that bit at a change of clocks too."""
    assert summary(samples(masks)).throttled == count


@pytest.mark.parametrize("bit", reasons.CAPS)
@pytest.mark.parametrize("capped", range(11))
def test_the_power_cap_counts_from_a_share_on(bit: int, capped: int) -> None:
    """A board touches its power cap at full load; a run that is mostly there is suspect, with that name and limit."""
    found = load(samples([bit] * capped + [0] * (10 - capped), power_limit_w=350.0, temperature_c=70)).suspicions
    if capped / 10 < CAPPED_SHARE:
        assert found == []
    else:
        assert found == [
            f"{NAME} was at its {reasons.NAMES[bit]} (limit 350 W) in {capped} of 10 busy samples ({capped / 10:.0%}): "
            "its times are those of the limit; SM clock 1980 MHz (median), 70 °C at most"
        ]


@pytest.mark.parametrize("mask", [0x40, 0x20, 0x80, 0x4, 0x8])
@pytest.mark.parametrize("idle", [{"clock_reasons": 0x1}, {"utilization_gpu_percent": 0}])
def test_an_idle_gpu_does_not_throttle(mask: int, idle: dict[str, int]) -> None:
    """Whatever holds the clocks of a GPU that has nothing to do, no request waited for it; its clocks do not count."""
    values: dict[str, Any] = {"sm_clock_mhz": 210} | idle
    values["clock_reasons"] = mask | idle.get("clock_reasons", 0)
    found = [sample(second, **(values if second < 8 else {})) for second in range(10)]
    each = summary(found)
    assert (each.busy, each.sm_clock_mhz, each.throttled, each.capped) == (2, 1980, 0, 0)
    assert load(found).suspicions == []


def test_without_utilization_or_reasons() -> None:
    """Without utilization, as of MIG, what is not idle by its reasons is busy; without reasons nothing throttles."""
    assert summary(samples([0, 1, 0x40], utilization_gpu_percent=None)).busy == 2
    each = summary([sample(n, clock_reasons=None, utilization_gpu_percent=None) for n in range(3)])
    assert (each.busy, each.throttled, each.reasons) == (3, 0, {})


@pytest.mark.parametrize(
    ("counts", "grown"),
    [
        ([7, 7, 7], 0),
        ([0, 0, 1], 1),
        ([5, None, 9], 4),
        ([5, 0, 2], 2),  # the driver was loaded anew
        ([None, None, None], None),
    ],
)
def test_memory_errors_are_those_that_came(counts: list[int | None], grown: int | None) -> None:
    """Counters of ECC errors are from before the run; what they grew by is the run's. Uncorrected ones are a fault."""
    found = [sample(n, ecc_corrected=count, ecc_uncorrected=count) for n, count in enumerate(counts)]
    each, judged = summary(found), load(found)
    assert (each.ecc_corrected, each.ecc_uncorrected) == (grown, grown)
    assert judged.faults == (
        [
            f"{NAME}: {grown} uncorrected memory errors (ECC) since the pair was ready: answers may come from damaged "
            "memory"
        ]
        if grown
        else []
    )
    assert judged.suspicions == []


def test_corrected_memory_errors_are_none() -> None:
    """ECC corrects so that nothing has to be done: the report shows the number, and it is no suspicion."""
    found = load([sample(n, ecc_corrected=n, ecc_uncorrected=0) for n in range(3)])
    assert (found.faults, found.suspicions) == ([], [])


@pytest.mark.parametrize(
    ("numbers", "fault", "suspicion"),
    [
        ([79], ["XID 79 (GPU has fallen off the bus)"], []),
        ([48, 48], ["XID 48 (uncorrectable memory error), 2 times"], []),
        ([13], [], ["XID 13 (exception of the graphics engine)"]),
        ([63, 94], ["XID 94 (contained memory error)"], ["XID 63 (memory row to be remapped)"]),
        ([777], [], ["XID 777 (see the Xid catalog of NVIDIA)"]),
        ([], [], []),
    ],
)
def test_xid_events(numbers: list[int], fault: list[str], suspicion: list[str]) -> None:
    """An XID of a GPU that failed is a fault, any other a suspicion; each has its number, meaning and GPU."""
    found = load([sample(0), sample(1)], xids=[Xid(START_S + 1, GPU.uuid, number) for number in numbers])
    assert found.faults == [f"{NAME}: {each}" for each in fault]
    assert [line.partition(": an error")[0] for line in found.suspicions] == [f"{NAME}: {each}" for each in suspicion]


@pytest.mark.parametrize(
    ("mine", "about", "counts"), [(None, None, True), (None, 3, True), (3, None, True), (3, 3, True), (3, 5, False)]
)
def test_an_xid_of_another_mig_instance(mine: int | None, about: int | None, counts: bool) -> None:
    """What happened in another instance of the same GPU is not the run's."""
    gpu = Gpu("MIG-1", GPU.uuid, 4, instance=mine)
    assert bool(summary([sample(0)], gpu=gpu, xids=[Xid(START_S, GPU.uuid, 13, about)]).xids) == counts


def test_a_lost_gpu_is_a_fault() -> None:
    """A run whose GPU fell off the bus is invalid and names it, and what was sampled before counts."""
    found = load([sample(0), sample(1), Sample(START_S + 2, 1.0, GPU.uuid, error="GPU is lost")])
    assert found.faults == [f"{NAME}: GPU is lost (see the kernel's log: `dmesg | grep -i xid`)"]
    assert found.figures["gpu_sm_clock_mhz"] == 1980


def test_each_load_has_its_own_samples_and_all_errors_before_it() -> None:
    """Heat of one context is not the next one's; an error that damaged memory in one is."""
    found = [sample(n, clock_reasons=0x40 if n < 3 else 0, ecc_uncorrected=int(n >= 2)) for n in range(10)]
    found += [sample(n, uuid="GPU-5", sm_clock_mhz=1410) for n in range(10)]
    gpus = (GPU, Gpu("5", "GPU-5", 5))
    both = Readings(gpus, tuple(found))
    spans = [Span(1000, START_S, START_S + 4), Span(3500, START_S + 5, START_S + 9)]
    first, second = (GpuLoad(summarize(both, [span], until_s=span.end_s)) for span in spans)
    assert [g.throttled for g in first.gpus] == [3, 0]
    assert [g.throttled for g in second.gpus] == [0, 0]
    assert len(first.faults) == len(second.faults) == 1
    assert second.figures["gpu_sm_clock_mhz"] == (1980 + 1410) / 2
    assert second.figures["gpu_sm_clock_slowest_mhz"] == 1410


def test_figures_of_gpus_that_say_nothing() -> None:
    """Nothing is stored of what is not known, and nothing where there are no GPUs."""
    assert GpuLoad().figures == {}
    assert GpuLoad().facts() == {}
    silent = load([Sample(START_S, 1.0, GPU.uuid, error="GPU is lost")])
    assert silent.figures == {}


def test_the_table_has_a_row_a_sample_and_gpu(tmp_path: Any) -> None:
    """Rows have the GPU, the load that they fall in with its clock, XIDs since the sample before, and typed gaps."""
    first, second = GPU, Gpu("MIG-5", "MIG-5", 5, "B", instance=2)
    found = (sample(0, clock_reasons=1 << 63), sample(0, uuid="MIG-5", sm_clock_mhz=None), sample(3), sample(9))
    span = Span(3500, START_S + 2.5, START_S + 8)
    both = Readings((first, second), found, (Xid(START_S + 2, GPU.uuid, 63), Xid(START_S + 3, GPU.uuid, 79)))
    path = tmp_path / "gpus.parquet"
    to_frame(both, [span]).to_parquet(path, index=False)
    table = pd.read_parquet(path)
    assert list(table["gpu_index"]) == [4, 5, 4, 4]
    assert list(table["identifier"]) == ["4", "MIG-5", "4", "4"]
    assert list(table["mig_instance"].fillna(-1)) == [-1, 2, -1, -1]
    assert table["clock_reasons"][0] == 1 << 63
    assert table["sm_clock_mhz"].isna().tolist() == [False, True, False, False]
    assert [list(xids) for xids in table["xids"]] == [[], [], [63, 79], []]
    assert table["context_tokens"].fillna(0).tolist() == [0, 0, 3500, 0]
    assert table["since_start_s"].tolist()[2] == 0.5
    assert str(table["clock_reasons"].dtype) == "UInt64"
    assert str(table["power_w"].dtype) == "float64"


def test_a_table_joins_with_requests() -> None:
    """A request finds the sample before its first token by the clock of its own row."""
    found = to_frame(Readings((GPU,), samples([0] * 5)), [Span(1000, START_S + 1, START_S + 9)])
    requests = pd.DataFrame({"first_token_s": [0.4, 2.5]})
    within = found.dropna(subset=["since_start_s"]).sort_values("since_start_s")
    joined = pd.merge_asof(requests, within, left_on="first_token_s", right_on="since_start_s")
    assert joined["monotonic_s"].tolist() == [START_S + 1, START_S + 3]


def test_an_empty_table_has_its_columns() -> None:
    """Of a boot without a sample there is a table all the same."""
    frame = to_frame(Readings(), [])
    assert {"monotonic_s", "uuid", "xids", "since_start_s"} <= set(frame.columns)
    assert frame.empty


def test_lines_come_back(tmp_path: Any) -> None:
    """What the sampler writes is what is read; a line that is cut off, or is none, is left out."""
    everything = [GPU, sample(0), Xid(1.0, "GPU-4", 79), "a note"]
    path = tmp_path / "gpus.jsonl"
    text = "".join(f"{line_of(each)}\n" for each in everything)  # type: ignore[arg-type]
    whole = Readings((GPU,), (sample(0),), (Xid(1.0, "GPU-4", 79),), ("a note",))
    for more in ("", '{"sample":{"monot', '[1]\n{"sample":{"new_field":1}}\n', "\n"):
        path.write_text(text + more)
        assert read(path) == whole
    assert read(tmp_path / "none") == Readings()


def test_any_order_of_masks_gives_the_same_counts() -> None:
    """Shares do not depend on when a throttle came."""
    for masks in itertools.permutations([0x40, 0x20, 0, 0]):
        assert summary(samples(masks)).throttled == 2


SERVER, WORKER, STRANGER = (
    GpuProcess(10, "vllm", 10),
    GpuProcess(11, "worker", 10),
    GpuProcess(99, "train", 90, 2 << 30),
)
NUMBERED_ELSEWHERE = GpuProcess(4001)


@pytest.mark.parametrize(
    ("lines", "own", "others", "untold"),
    [
        ([(0, [SERVER, WORKER])], {10}, [], False),
        ([(0, [SERVER, STRANGER])], {10}, [STRANGER], False),
        ([(0, [SERVER]), (105, [SERVER, STRANGER]), (106, [SERVER])], {10}, [STRANGER], False),
        ([(0, [SERVER, STRANGER]), (99, [SERVER])], {10}, [], False),
        ([(0, [SERVER]), (111, [SERVER, STRANGER])], {10}, [], False),
        ([(0, [NUMBERED_ELSEWHERE])], {10}, [], True),
        ([(0, [SERVER, STRANGER])], None, [], False),
        ([], {10}, [], False),
    ],
    ids=[
        "none",
        "all the time",
        "for a second",
        "before",
        "after",
        "another namespace",
        "not to be told",
        "not listed",
    ],
)
def test_strangers_on_a_gpu(
    tmp_path: Path,
    lines: list[tuple[float, list[GpuProcess]]],
    own: set[int] | None,
    others: list[GpuProcess],
    untold: bool,
) -> None:
    """Who is on a GPU of the run during a load and is not of the run is named; where numbers differ, that is said."""
    file = tmp_path / "gpus.jsonl"
    written: list[Gpu | Sample | Users] = [GPU, sample(0), *(Users(at_s, GPU.uuid, tuple(who)) for at_s, who in lines)]
    file.write_text("".join(f"{line_of(each)}\n" for each in written))
    found = summarize(read(file), [Span(3500, 100.0, 110.0)], until_s=110.0)
    load = GpuLoad(found, own_pids={} if own is None else {"": frozenset(own)})
    named = f"{', '.join(map(str, others))}; run it again on a quiet machine"
    assert load.disturbances == ([f"other processes are on {GPU}: {named}"] if others else [])
    assert [each["pid"] for each in load.facts()["gpus"]["others"][str(GPU)]] == [each.pid for each in others]
    assert [untold] == [any("cannot be told" in note for note in load.facts()["gpus"]["notes"])]
    assert load.suspicions == []

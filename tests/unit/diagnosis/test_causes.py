"""Every known way to fail: its cause and its hint, whatever else the log holds and whichever line comes first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.serving.diagnosis.causes import CAUSES
from pytest_kvcache.serving.diagnosis.diagnose import diagnose, failed_storage
from tests.unit.diagnosis.logs import API, CASES, CONSEQUENCES, CORE, LMCACHE, STORAGE, Case, by, thrown

EVERY = {**CASES, **STORAGE}


@pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)
def test_cause_and_hint(case: Case) -> None:
    """A known failure has its own hint, and none of another kind."""
    found = diagnose(case.root)
    assert case.cause in found.cause
    assert case.hint in found.hint
    assert case.not_hint not in found.hint


@pytest.mark.parametrize("case", STORAGE.values(), ids=STORAGE)
def test_what_a_living_component_says_of_its_storage(case: Case) -> None:
    """A store that failed is told of a component that lives on, too, after other exceptions as well as before."""
    for log in (case.root, thrown("ValueError: of its own") + case.root, case.root + thrown("ValueError: of its own")):
        found = failed_storage(log)
        assert case.cause in found.cause
        assert case.hint in found.hint
        assert case.not_hint not in found.hint


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(EVERY)), st.data())
def test_a_consequence_is_never_the_first_cause(name: str, data: st.DataObject) -> None:
    """Whatever follows from a failure may stand before it, behind it and between its lines: the cause is the same."""
    case = EVERY[name]
    mixed = ""
    for line in case.root.splitlines(keepends=True):
        mixed += "".join(data.draw(st.lists(st.sampled_from(CONSEQUENCES), max_size=3))) + line
    mixed += "".join(data.draw(st.lists(st.sampled_from(CONSEQUENCES), max_size=3)))
    found = diagnose(mixed)
    assert case.cause in found.cause
    assert case.hint in found.hint
    assert case.not_hint not in found.hint


@given(st.permutations(CONSEQUENCES), st.integers(0, len(CONSEQUENCES)))
def test_an_unknown_exception_comes_before_what_follows(order: list[str], at: int) -> None:
    """An exception that is not known, of a process of vLLM, is the cause of all that follows from another's end."""
    log = "".join([*order[:at], by(CORE, thrown("AssertionError: never seen")), *order[at:]])
    assert diagnose(log).cause == "AssertionError: never seen"
    assert diagnose(log).hint == ""


@pytest.mark.parametrize("consequence", [c for c in CONSEQUENCES if "INFO" not in c and "Worker failed" not in c])
def test_a_log_of_consequences_alone_says_so(consequence: str) -> None:
    """Where a log has nothing but what follows, its line is shown and the reader is sent on."""
    found = diagnose(consequence)
    assert found.cause
    assert found.cause in consequence
    assert "dmesg" in found.hint


def test_what_a_worker_said_may_be_known_from_its_engine_alone() -> None:
    """Where only the engine's quotation of a worker's exception is there, it is the cause, with that one's hint."""
    (quoted,) = [c for c in CONSEQUENCES if "Worker failed with error 'CUDA" in c]
    assert diagnose(quoted).cause.startswith("RuntimeError: Worker failed with error 'CUDA out of memory")
    assert "--gpu-memory-utilization" in diagnose(quoted).hint


def test_a_store_that_failed_ends_no_server() -> None:
    """A worker that is killed is why vLLM ended, though its LMCache had logged stores that failed before."""
    log = STORAGE["no-space-inside"].root + "RuntimeError: cancelled\n" + CASES["worker-killed-before-0.25"].root
    assert "died unexpectedly" in diagnose(log).cause


def test_lines_of_several_processes_are_put_together_again() -> None:
    """Where workers write their tracebacks at once, line by line, each exception keeps what belongs to it."""
    ranks = [
        by(f"(Worker_TP{rank} pid=114{rank}) ERROR 04-01 07:17:10 [multiproc_executor.py:949] ", text).splitlines()
        for rank, text in enumerate(
            (
                thrown(
                    "DistBackendError: NCCL error in: x, unhandled system error\nLast error:\nError while creating "
                    "shared memory segment /dev/shm/nccl-E (size 7)"
                ),
                thrown("RuntimeError: of the other\nwith a second line\nand a third"),
            )
        )
    ]
    found = diagnose("\n".join(line for pair in zip(*ranks, strict=True) for line in pair))
    assert found.cause.startswith("DistBackendError: NCCL error in: x")
    assert "--shm-size" in found.hint


@pytest.mark.parametrize(
    "line",
    [
        "(APIServer pid=3) INFO 11-24 13:00:47 [utils.py:286] non-default args: {'gpu_memory_utilization': 0.1}",
        "(EngineCore pid=3) INFO 11-24 13:00:47 [gpu_worker.py:1013] Free memory on device (70/79 GiB) on startup.",
        "(EngineCore pid=3) WARNING 11-24 13:00:47 [x.py:1] ModuleNotFoundError: No module named 'nixl'",
        "[2026-11-24 12:39:28,603] LMCache INFO: S3L2Adapter resolving AWS credentials via boto3 delegate",
        "gpu-1:8:8 [0] NCCL INFO NET/Plugin: libnccl-net.so: cannot open shared object file: No such file",
        '    if "out of memory" in str(error):',
    ],
)
def test_words_in_passing_are_no_cause(line: str) -> None:
    """Lines of information, of warnings and of source code have no hint, and no exception behind them is hidden."""
    assert diagnose(line).hint == ""
    assert diagnose(f"{line}\n{thrown('KeyError: 1')}").cause == "KeyError: 1"


def test_a_failure_that_was_got_over_is_not_the_storage_s() -> None:
    """A hint comes from the cause's own words or from what led to it, not from another line of the log."""
    log = f"{LMCACHE}Failed to write file /kv/m.data: [Errno 28] No space left on device\n" + by(
        API, thrown("ValueError: of its own")
    )
    assert diagnose(log).cause == "ValueError: of its own"
    assert diagnose(log).hint == ""


def test_every_known_cause_has_a_hint() -> None:
    """None is known for nothing; hints go on in a line of the terminal, and end without a full stop."""
    assert all(cause.hint and not cause.hint.endswith(".") for cause in CAUSES)

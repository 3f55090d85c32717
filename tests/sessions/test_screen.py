"""What a session prints before, while and after it measures, unless it is asked for more."""

from __future__ import annotations

import pytest

from pytest_kvcache.baselines import store
from pytest_kvcache.campaign.comparability import machine_name
from pytest_kvcache.telemetry.hardware import hardware
from pytest_kvcache.verdict.cells import Cell
from tests.projects import Project, configure, run, run_folder
from tests.stubs.engine import make_engine, toml
from tests.unit.verdict.make import stored


def test_a_session_ends_with_one_screen(project: Project) -> None:
    """A row a cell within 80 columns and a few lines; all tables are in details.txt, and none of pytest-benchmark's."""
    configure(project, toml(contexts=(50, 60)))
    args = ("--tier", "gpu", "--tier", "pnfs", "--record-baselines", "--kv-boots", "1")
    result = project.runpytest_inprocess("-p", "no:cacheprovider", *args)
    result.assert_outcomes(passed=12)
    head = [line for line in result.outlines if line.startswith("kvcache: ")]
    assert head[0].startswith("kvcache: profile stub, tiers gpu, pnfs ")
    assert head[1].startswith("kvcache: engine vllm 0.stub, lmcache 0.stub, vllm-router 0.stub; machine: ")
    assert head[2].startswith("kvcache: gates ttft, speed, decode at contexts 50, 60; baselines: 0 in ")
    assert "kvcache: gpu boot-1, context 60: warming up and filling caches; " in "\n".join(head)
    start = next(at for at, line in enumerate(result.outlines) if "kvcache: stub" in line and line.startswith("="))
    end = next(at for at, line in enumerate(result.outlines) if line.startswith("rows, counters and logs: "))
    table = result.outlines[start + 1 : start + 6]
    assert [line.split()[:2] for line in table[1:]] == [
        ["gpu", "50"],
        ["gpu", "60"],
        ["pnfs*", "50"],
        ["pnfs*", "60"],
    ]
    assert all(len(line) <= 80 and line.endswith("recorded 1") for line in table[1:])
    assert end - start < 16
    assert "* pnfs (stand-in: " in "\n".join(result.outlines)
    details = (run_folder(project) / "details.txt").read_text()
    for each in ("where prompt tokens came from", "what the storage says", "against gpu:", "boot sd", "peak memory"):
        assert each in details
        assert each not in result.stdout.str()
    assert "benchmark 'TTFT'" not in result.stdout.str()
    again = project.runpytest_inprocess("-p", "no:cacheprovider", *args, "-v", "-k", "gpu and 50")
    assert "where prompt tokens came from" in again.stdout.str()
    assert "benchmark 'TTFT'" in again.stdout.str()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--tier gpu", "decode at contexts 50, 60; * about 2 minutes for 1 boot (no boot is known here yet)"),
        ("--tier gpu -k 60", "decode at contexts 60; * about 1 minute for 1 boot (*"),
        ("--tier gpu --tier pnfs", "decode at contexts 50, 60; * about 3 minutes for 2 boots (*"),
        ("--tier gpu --tier pnfs -k gpu", "decode at contexts 50, 60; * for 1 boot (*"),
        ("--tier gpu --update-baselines", "* about 9 minutes for 6 boots (*"),
        ("--tier gpu --record-baselines", "* for 6 boots (*"),
        ("--tier gpu --record-baselines --kv-boots 2", "* for 2 boots (*"),
        (
            "--tier cpu",
            "decode, gain-ttft-over-gpu, gain-speed-over-gpu at contexts 50, 60; * about 8 minutes for 5 boots (*",
        ),
        (
            "--tier cpu -k over-gpu",
            "decode, gain-ttft-over-gpu, gain-speed-over-gpu at contexts 50, 60; * for 5 boots (*",
        ),
        ("--tier cpu --kv-boots 3", "* for 1 boot (*"),
        ("--tier cpu --kv-boots 4", "* for 5 boots (*"),
        ("--tier cpu -k decode", "decode at contexts 50, 60; * for 1 boot (*"),
    ],
)
def test_what_a_session_takes_is_said_before_it_begins(project: Project, args: str, said: str) -> None:
    """Boots are those that a baseline lacks, or one, and those of gains; contexts and gates those that tests are of."""
    more = '\n[profiles.stub.gates.gains]\n"cpu over gpu" = { ttft = 0.5, speed = 1 }\n'
    configure(project, toml(boots=6, contexts=(50, 60), more=more))
    project.makeconftest("def pytest_runtestloop(session): return True")
    result = run(project, *args.split())
    result.stdout.fnmatch_lines([f"kvcache: gates ttft, speed, {said}"])


@pytest.mark.parametrize(("had", "boots"), [({}, "6 boots"), ({50: 2, 60: 4}, "4 boots"), ({50: 6, 60: 6}, "1 boot")])
def test_boots_that_a_baseline_has_are_not_expected_again(project: Project, had: dict[int, int], boots: str) -> None:
    """`--record-baselines` takes what the cell lacks that has the fewest, and one to compare where none lacks any."""
    configure(project, toml(boots=6, contexts=(50, 60)))
    machine = machine_name(hardware([]))
    cells = [stored([0.01 * n for n in range(k)], cell=Cell("stub", machine, "gpu", at)) for at, k in had.items()]
    store.write_all(project.path / "baselines", [store.Write(cell) for cell in cells])
    project.makeconftest("def pytest_runtestloop(session): return True")
    result = run(project, "--tier", "gpu", "--record-baselines")
    result.stdout.fnmatch_lines([f"kvcache: gates * for {boots} (*"])


def test_what_all_gates_of_a_cell_have_in_common_is_said_once(project: Project) -> None:
    """The first test that fails has the whole message; the others have its head, and the name of the first."""
    configure(project, toml(vllm_args='"--stub-fail", "corrupt"'))
    result = run(project, "--tier", "gpu", "-q")
    result.assert_outcomes(failed=3)
    out = result.stdout.str()
    assert out.count("rows, counters and logs: ") == 2  # of the first test, and of the session
    assert out.count("corrupted KV") >= 3
    assert out.count("(in full: test_multi_round_qa.py::test_multi_round_qa[gpu-50-ttft])") == 2


@pytest.mark.parametrize(("args", "lines"), [(("-q",), 0), ((), 1), (("-p", "no:terminal"), 0)])
def test_progress_is_as_quiet_as_pytest(project: Project, args: tuple[str, ...], lines: int) -> None:
    """Under -q, and without a terminal, phases are not shown; what was measured is kept all the same."""
    configure(project, toml(duration_s=0.3))
    result = project.runpytest_inprocess("-p", "no:cacheprovider", "--tier", "gpu", "--record-baselines", *args)
    assert result.ret == 0
    shown = [line for line in result.outlines if "warming up and filling caches" in line]
    assert len(shown) == lines
    assert (run_folder(project) / "gpu" / "boot-1" / "context-50" / "requests.parquet").exists()


def test_an_engine_that_is_not_there_is_in_the_header(project: Project) -> None:
    """The header says so and stops nothing: the tests say what to do."""
    configure(project, toml())
    engine = make_engine(project.path / "e")
    (engine / "bin" / "python").unlink()
    result = project.runpytest_inprocess("-p", "no:cacheprovider", "--tier", "gpu", f"--kv-engine={engine}")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["kvcache: engine is not there yet; machine: *"])

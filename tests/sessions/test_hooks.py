"""Hooks of third parties: when they are called, with what, and that none of them costs a measurement."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from pytest_kvcache import activation, perf  # noqa: F401 - numpy cannot be imported twice in one process
from pytest_kvcache.api.hooks import BOOT, MEASURED, REPORT, VERDICT, Hooks
from tests.projects import Project, configure, run_folder
from tests.stubs.engine import toml

#: A store of somebody else's: a line for each call, in the order of the calls.
_STORE = """
import json
from pathlib import Path

def note(hook, **facts):
    with open("store.jsonl", "a") as store:
        store.write(json.dumps({"hook": hook, **facts}) + "\\n")

def pytest_kvcache_boot(config, boot):
    note("boot", name=boot.name, tier=boot.tier, profile=boot.profile, side=boot.side, error=boot.error,
         ready=boot.boot_s is not None and boot.base_url.endswith("/v1"), vllm=boot.versions.get("vllm"),
         logs=sorted(p.name for p in boot.logs.iterdir()))

def pytest_kvcache_measured(config, measured):
    note("measured", boot=measured.boot, context=measured.context_tokens, valid=measured.valid,
         faults=measured.faults, figures=len(measured.figures), rows=len(measured.requests),
         written=sorted(p.name for p in measured.folder.iterdir()))

def pytest_kvcache_verdict(config, item, result, verdict):
    note("verdict", test=item.name, status=verdict.status, boots=len(result.boots), folder=str(result.folder))

def pytest_kvcache_report(config, report):
    note("report", results=[[r.tier, r.context_tokens, r.valid] for r in report.results], run_id=report.run_id,
         failures=[[f.tier, f.context_tokens, f.error] for f in report.failures], interrupted=report.interrupted,
         baselines=[Path(p).is_file() for p in report.baselines], minutes=report.engine_minutes > 0,
         scratch=len(list(Path("/tmp").glob(f"kvc-{report.run_id}"))))
"""


def run_here(project: Project, *args: str) -> pytest.RunResult:
    """Run pytest in this process, with the store as a plugin."""
    project.makepyfile(my_store=_STORE)
    options = ("-p", "no:cacheprovider", "-p", "no:benchmark", "-p", "my_store", "--tier", "gpu")
    project.syspathinsert()
    return project.runpytest_inprocess(*options, *args)


def stored(project: Project, hook: str = "") -> list[dict[str, Any]]:
    """Return what the store has, of one hook or of all."""
    path = project.path / "store.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return [row for row in rows if row["hook"] == hook or not hook]


def test_a_store_of_ones_own_learns_everything(project: Project) -> None:
    """A plugin is told of the boot before its load, of each load with its files, of each verdict, and of the whole."""
    configure(project, toml(contexts=(50, 60)))
    run_here(project, "--record-baselines").assert_outcomes(passed=6)
    assert [row["hook"] for row in stored(project)] == ["boot", *["measured"] * 2, *["verdict"] * 6, "report"]
    (boot,) = stored(project, "boot")
    facts = {"name": "boot-1", "tier": "gpu", "profile": "stub", "side": "", "error": "", "ready": True}
    assert facts.items() <= boot.items()
    assert boot["vllm"] == "0.stub"
    assert "vllm-0.log" in boot["logs"]
    for row, context in zip(stored(project, "measured"), (50, 60), strict=True):
        assert (row["boot"], row["context"], row["valid"], row["faults"]) == ("boot-1", context, True, [])
        assert row["figures"] > 30
        assert row["rows"] > 5
        assert {"requests.parquet", "run.json"} <= set(row["written"])
    assert {row["status"] for row in stored(project, "verdict")} == {"recorded"}
    assert stored(project, "verdict")[0]["test"] == "test_multi_round_qa[gpu-50-ttft]"
    (report,) = stored(project, "report")
    assert report["results"] == [["gpu", 50, True], ["gpu", 60, True]]
    assert report["failures"] == []
    assert (report["interrupted"], report["minutes"], report["scratch"]) == (False, True, 0)
    assert report["baselines"] == [True, True]
    assert report["run_id"] == run_folder(project).name


def test_an_invalid_run_is_told_with_its_faults(project: Project) -> None:
    """A run that no verdict may rest on is measured, judged and reported, as what it is."""
    configure(project, toml(vllm_args='"--stub-fail=500"'))
    run_here(project).assert_outcomes(failed=3)
    (measured,) = stored(project, "measured")
    assert not measured["valid"]
    assert any("requests failed" in fault for fault in measured["faults"])
    assert {row["status"] for row in stored(project, "verdict")} == {"invalid"}
    (report,) = stored(project, "report")
    assert report["results"] == [["gpu", 50, False]]


def test_a_boot_that_fails_is_told(project: Project) -> None:
    """A pair that does not start is told with its cause, and is a failure of the session's report."""
    configure(project, toml(vllm_args='"--stub-fail=boot"'))
    run_here(project).assert_outcomes(failed=3)
    assert [row["hook"] for row in stored(project)] == ["boot", "report"]
    (boot,) = stored(project, "boot")
    assert not boot["ready"]
    assert "the first cause" in boot["error"]
    ((tier, context, error),) = stored(project, "report")[0]["failures"]
    assert (tier, context) == ("gpu", 50)
    assert "the first cause" in error


def test_an_interrupted_session_is_reported(project: Project) -> None:
    """Where a session ends before its time, the report has what was measured until then, and says so."""
    configure(project, toml())
    project.makepyfile(test_z="import pytest\n@pytest.mark.perf\ndef test_z(kv_tier): pytest.exit('enough')")
    result = run_here(project, "--record-baselines")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    (report,) = stored(project, "report")
    assert (report["interrupted"], report["results"], report["baselines"]) == (True, [["gpu", 50, True]], [])


def test_an_interrupted_load_is_no_measurement(project: Project) -> None:
    """A load that is cut short is not measured; the report comes all the same, with the tier that it cost."""
    configure(project, toml())
    project.makeconftest("import pytest\ndef pytest_kvcache_boot(): pytest.exit('enough')")
    result = run_here(project)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert [row["hook"] for row in stored(project)] in (["boot", "report"], ["report"])
    (report,) = stored(project, "report")
    assert report["interrupted"]
    assert report["results"] == []
    assert report["scratch"] == 0


def test_a_pair_and_a_load_of_ones_own_are_told(project: Project) -> None:
    """The pair of `vllm_pair` is a boot like others, and what `kv_load` sends is measured."""
    configure(project, toml())
    (project.path / "test_multi_round_qa.py").unlink()
    project.makepyfile(
        """
        import pytest
        from pytest_kvcache import ConfigError
        @pytest.mark.perf
        def test_it(kv_load, kv_profile, kv_baseline):
            load = kv_load(kv_profile.workload)
            assert load.shares.computed + load.shares.device == 1
            with pytest.raises(pytest.fail.Exception, match="7 is none of the workload's context_tokens: 50"):
                kv_load(kv_profile.workload, context_tokens=7)
            with pytest.raises(pytest.fail.Exception, match="must be what multi_round_qa or kv_measure returned"):
                kv_baseline.check(load)
            assert kv_load(kv_profile.workload).folder != load.folder
        """
    )
    run_here(project).assert_outcomes(passed=1)
    assert [row["hook"] for row in stored(project)] == ["boot", "measured", "measured", "report"]
    assert stored(project, "boot")[0]["name"] == "pair-1"
    assert {row["boot"] for row in stored(project, "measured")} == {"pair-1"}


def test_without_perf_no_hook_is_called(project: Project) -> None:
    """In a session without perf tests the hooks are known, and nobody calls them."""
    configure(project, toml())
    project.makeconftest(_STORE)
    project.makepyfile(test_plain="def test_plain(): pass")
    result = project.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, deselected=1)
    assert stored(project) == []


def test_a_hook_that_raises_costs_nothing(project: Project) -> None:
    """All hooks of a plugin raise: tests pass, baselines are written, the other plugin is told, and each has a line."""
    configure(project, toml())
    hooks = "\n".join(f"def pytest_kvcache_{n}(config): 1 / 0" for n in ("boot", "measured", "verdict", "report"))
    project.makeconftest(hooks)
    result = run_here(project, "--record-baselines")
    result.assert_outcomes(passed=3)
    assert result.ret == 0
    assert len(list((project.path / "baselines").rglob("*.json"))) == 1
    assert [row["hook"] for row in stored(project)] == ["boot", "measured", *["verdict"] * 3, "report"]
    output = result.stdout.str()
    for name, times in (("boot", 1), ("measured", 1), ("verdict", 3), ("report", 1)):
        line = f"hook pytest_kvcache_{name} raised ZeroDivisionError: division by zero ("
        assert output.count(line) == 2 * times  # at once, and in the summary
    assert "conftest.py:1); what was measured stands" in output


_NUMBERS = itertools.count()


def plugin(name: str, hook: Callable[[], object]) -> ModuleType:
    """Return a module that implements one hook."""
    module = ModuleType(f"plugin_{next(_NUMBERS)}")
    setattr(module, name, hook)
    return module


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no store"),
        pytest.fail.Exception("no store"),
        pytest.skip.Exception("no store"),
        pytest.xfail.Exception("no store"),
        SystemExit("no store"),
    ],
)
def test_whatever_a_hook_raises_is_told_and_kept_apart(pytester: pytest.Pytester, error: BaseException) -> None:
    """Errors, and outcomes such as `pytest.fail`, are a line each; the other plugins' hooks are called."""
    config = pytester.parseconfigure()
    called: list[str] = []

    def bad() -> None:
        raise error

    given = {BOOT: ["boot"], MEASURED: ["measured"], VERDICT: ["item", "result", "verdict"], REPORT: ["report"]}
    for name, arguments in given.items():
        for hook in (lambda: called.append("first"), bad, lambda: called.append("last")):
            config.pluginmanager.register(plugin(name, hook))
        state = SimpleNamespace(hook_errors=[], say=called.append)
        Hooks(config, cast("Any", state))._call(name, **dict.fromkeys(arguments))
        line = called.pop(1)
        assert called == ["last", "first"]
        assert line.startswith(f"hook {name} raised {type(error).__name__}: no store (")
        assert state.hook_errors == [line]
        called.clear()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), pytest.exit.Exception("enough")])
def test_an_interruption_goes_on(pytester: pytest.Pytester, error: BaseException) -> None:
    """Ctrl-C in a hook, and `pytest.exit`, end the session as they do elsewhere."""
    config = pytester.parseconfigure()

    def hook() -> None:
        raise error

    config.pluginmanager.register(plugin(BOOT, hook))
    with pytest.raises(type(error)):
        Hooks(config, cast("Any", SimpleNamespace(hook_errors=[], say=print)))._call(BOOT, boot=None)

"""Folders that cannot be written. A file in the place of a folder stands for them: no permission keeps root out."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

# Before any session in this process, which would forget what it imports itself: NumPy can be imported once only.
from pytest_kvcache import activation, cli, perf  # noqa: F401
from tests.projects import Project, configure, run
from tests.stubs.engine import toml


def content(folder: Path) -> dict[str, int]:
    """Return all files below a folder, with when they were written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_results_elsewhere_leave_the_project_as_it_is(
    project: Project, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --kv-runs elsewhere a run writes nothing into the project: its folder may be read-only."""
    configure(project, toml(contexts=(50, 60)))
    (project.path / ".kvcache").write_text("in the place of a folder")
    # What Python compiles is Python's: of the session, which may run in this process, and of what it starts.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for variable in ("HOME", "PYTEST_KVCACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path_factory.mktemp("home")))
    elsewhere = tmp_path_factory.mktemp("runs")
    before = content(project.path)
    args = (f"--kv-runs={elsewhere}", f"--kv-baselines={elsewhere}/baselines", "--record-baselines")
    result = run(project, "-p", "no:benchmark", "--tier", "gpu", *args)
    result.assert_outcomes(passed=6)
    after = content(project.path)
    ours_of_the_test = {"stdout", "stderr", "runpytest-0", "runpytest-current"}
    assert {path: time for path, time in after.items() if Path(path).name not in ours_of_the_test} == before
    assert list(elsewhere.rglob("chart.svg"))


@pytest.mark.parametrize("what", ["runs", "home", "journal", "ports", "storage"])
def test_a_folder_that_cannot_be_written_is_named(project: Project, kvcache_home: Path, what: str) -> None:
    """Results or home that cannot be written are named in one line with what to do, and nothing boots."""
    configure(project, toml())
    file = {"runs": project.path / ".kvcache", "home": kvcache_home}.get(what, kvcache_home / what)
    (kvcache_home / "ports").unlink()
    if what == "home":
        kvcache_home.rmdir()
    file.write_text("in the place of a folder")
    result = project.runpytest_inprocess("-p", "no:cacheprovider", "--tier", "gpu", "-k", "ttft")
    result.assert_outcomes(errors=1, deselected=2)
    result.stdout.fnmatch_lines(
        [f"{file}*: cannot be written: *", "  -> name folders that can: --kv-runs=*KVCACHE_HOME*"]
    )
    assert "Error" not in result.stdout.str().replace("ERROR", "")
    assert not list((project.path / ".kvcache").rglob("*/*/*"))


def test_a_load_whose_rows_could_not_be_kept_is_not_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pytest-kvcache load` with an output that cannot be written says so in one line, and sends nothing."""
    (tmp_path / "out").write_text("in the place of a folder")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        args = f"load --base-url {url} --model m --num-users 2 --num-rounds 2 --qps 1 --user-history-prompt 10 --time 1"
        assert cli.main([*args.split(), "--output", str(tmp_path / "out" / "x.csv")]) == 1
        with pytest.raises(BlockingIOError):
            server.accept()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pytest-kvcache: [Errno ")
    assert str(tmp_path / "out") in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["setup --vllm 1.0 --lmcache 1.0", "setup --prune", "setup --path", "doctor"])
def test_a_subcommand_without_a_home(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that cannot be written costs a subcommand one line, and no traceback."""
    (tmp_path / "home").write_text("in the place of a folder")
    monkeypatch.setenv("PYTEST_KVCACHE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) in {0, 1}
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == (1 if "vllm" in command else 0)


def test_baselines_that_cannot_be_written_cost_no_boot(project: Project) -> None:
    """Where they are to be written and cannot be, that is said before the first boot; comparing needs no such right."""
    configure(project, toml())
    (project.path / "place").write_text("in the place of a folder")
    result = run(project, "--tier", "gpu", "--record-baselines", "--kv-baselines=place/baselines")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "place/baselines: baselines cannot be written there" in result.stderr.str()
    assert not (project.path / ".kvcache").exists()

"""Launchers pass the conformance suite, with stub programs; which one boots is the user's choice."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from pytest_kvcache.engine.named import engine_named
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.launchers import catalogue as launchers
from pytest_kvcache.tiers import catalogue
from tests.conformance.__main__ import tried
from tests.conformance.kills import KILLS, killed, pytest_killed
from tests.conformance.launchers import WHILE_UP, Case, Check, booted, leaves_nothing, starts_cold
from tests.projects import Project, configure, run, run_folder
from tests.stubs.docker import StubDocker
from tests.stubs.engine import toml


def case(name: str, engine: str, tmp_path: Path, home: Path) -> Case:
    """Return a launcher with stub programs."""
    config = tmp_path / "kvcache.toml"
    config.write_text(toml())
    return Case(name, engine_named(engine), catalogue.load(config).profile("stub"), home, tmp_path)


@pytest.mark.parametrize("check", WHILE_UP.values(), ids=WHILE_UP)
@pytest.mark.parametrize(("name", "engine"), [("process", ""), ("docker", "image:kv:1")], ids=["process", "docker"])
def test_a_pair_that_is_up(  # noqa: PLR0917 - fixtures
    check: Check,
    name: str,
    engine: str,
    stub_engine: Path,
    daemon: StubDocker,
    tmp_path: Path,
    kvcache_home: Path,
) -> None:
    """Each launcher passes each check, with a stub of the daemon for containers; afterwards nothing is left."""
    with booted(case(name, engine or str(stub_engine), tmp_path, kvcache_home)) as boot:
        check(boot)
    leaves_nothing(boot)
    assert daemon.all == []


@pytest.mark.parametrize(("name", "engine"), [("process", ""), ("docker", "image:kv:1")], ids=["process", "docker"])
def test_a_second_boot(  # noqa: PLR0917 - fixtures
    name: str, engine: str, stub_engine: Path, daemon: StubDocker, tmp_path: Path, kvcache_home: Path
) -> None:
    """Storage is fresh for each boot."""
    starts_cold(case(name, engine or str(stub_engine), tmp_path, kvcache_home))
    assert daemon.all == []


def test_a_deployment_that_is_attached_to(stub_engine: Path, tmp_path: Path, kvcache_home: Path) -> None:
    """All checks hold or are the deployment's own, a killed server is named, and the deployment is left alone."""
    column = tried(case("attach", str(stub_engine), tmp_path, kvcache_home))
    own = {"logs", "restart one", "cold start", "boot"}
    assert {row for row, said in column.items() if str(said).startswith("not its own: ")} == own
    assert str(column.pop("kill")).startswith("holds, once the load is over: vllm-1: its counters could not be read")
    assert isinstance(column.pop("TTFT, small request"), float)
    assert {said for row, said in column.items() if row not in own} == {"holds"}
    assert {*WHILE_UP, "teardown"} - {"kill"} <= {*column}


@pytest.mark.parametrize("what", ["LMCache server", "balancer", "agent", "container"])
@pytest.mark.parametrize(("name", "engine"), [("process", ""), ("docker", "image:kv:1")], ids=["process", "docker"])
def test_what_is_killed_is_named(  # noqa: PLR0917 - fixtures
    name: str, engine: str, what: str, stub_engine: Path, daemon: StubDocker, tmp_path: Path, kvcache_home: Path
) -> None:
    """Whatever of a pair is killed, the run says its name and the signal, and leaves nothing."""
    said = killed(case(name, engine or str(stub_engine), tmp_path, kvcache_home), what)
    component = KILLS[what][0]
    none = what == "agent" or (what == "container" and name == "process")
    ended = f"{component} ended while serving: it was killed (SIGKILL); nothing left"
    assert said == ("has none" if none else ended)
    assert daemon.all == []


def test_a_process_with_a_pair_is_killed(stub_engine: Path, tmp_path: Path, kvcache_home: Path) -> None:
    """After SIGKILL of the process that has booted a pair, the next run removes everything and says so."""
    made = case("process", str(stub_engine), tmp_path, kvcache_home)
    config = str(tmp_path / "kvcache.toml")
    said = pytest_killed(made, ["--config", config, "--profile", "stub", f"process={stub_engine}"])
    assert re.fullmatch(
        r"next run: cleaned up after run ID, which was killed: \d+ processes ended, 2 folders removed; nothing left",
        said,
    )


#: A launcher that a project has itself: it counts what it starts.
OWN = """
from pytest_kvcache.serving.launchers.process import ProcessLauncher


class Counting(ProcessLauncher):
    name = "counting"
    started = 0

    def start(self, component, logs):
        type(self).started += 1
        return super().start(component, logs)

    def describe(self):
        return {"name": self.name, "started": str(self.started)}
"""


def add_launcher(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Have a launcher registered as an installed package would."""
    point = EntryPoint(name, value, launchers.GROUP)
    known = {**launchers.launchers(), name: point}
    monkeypatch.setattr(launchers, "launchers", lambda: known)


@pytest.mark.parametrize("by", ["option", "ini", "profile", "tier", "class"])
def test_a_launcher_of_ones_own(project: Project, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """It boots the pair, by option, ini key, profile or tier, registered or not, and its name is compared."""
    project.makepyfile(own_launcher=OWN)
    project.syspathinsert()
    add_launcher(monkeypatch, "counting", "own_launcher:Counting")
    more = 'launcher = "counting"\n' if by == "profile" else ""
    own = {"tier": '[tiers.gpu]\nlauncher = "counting"\n', "class": '[tiers.gpu]\nlauncher = "own_launcher:Counting"\n'}
    text = toml(more=own.get(by, ""))
    configure(project, text.replace("gpus_per_server = 0\n", f"gpus_per_server = 0\n{more}"))
    if by == "ini":
        ini = project.path / "pyproject.toml"
        ini.write_text(ini.read_text().rstrip() + '\nkv_launcher = "counting"\n')
    run(
        project, *(["--kv-launcher=counting"] if by == "option" else []), "--tier=gpu", "--record-baselines"
    ).assert_outcomes(passed=3)
    (facts,) = (json.loads(path.read_text()) for path in run_folder(project).rglob("run.json"))
    assert facts["launcher"] == {"name": "counting", "started": "3"}
    assert facts["comparability"]["serving.launcher"] == ("own_launcher:Counting" if by == "class" else "counting")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("slurm", "--kv-launcher: unknown launcher 'slurm'; known: *docker, process*"),
        ("docker", "launcher: launcher docker starts containers, and the engine is no image*"),
        ("gone", "--kv-launcher: 'no_such_module*' cannot be imported*"),
        ("no_such_module:X", "--kv-launcher: 'no_such_module:X' cannot be imported*"),
    ],
)
def test_a_launcher_that_cannot_be(project: Project, monkeypatch: pytest.MonkeyPatch, name: str, told: str) -> None:
    """It is refused before anything boots, in one line."""
    if name == "gone":
        add_launcher(monkeypatch, name, "no_such_module:Launcher")
    configure(project, toml())
    result = run(project, f"--kv-launcher={name}", "--tier=gpu")
    assert result.ret != pytest.ExitCode.OK
    assert any(fnmatch(line, f"*{told}") for line in result.outlines + result.errlines)
    assert not list((project.path / ".kvcache").rglob("vllm-*.log"))


def test_a_folder_of_programs_is_for_no_image(daemon: StubDocker, tmp_path: Path, kvcache_home: Path) -> None:
    """The launcher of processes says what to take for an image."""
    with pytest.raises(
        ConfigError, match=r"the engine is an image: image:kv:1\n  -> leave the launcher out, or take docker"
    ):
        starts_cold(case("process", "image:kv:1", tmp_path, kvcache_home))

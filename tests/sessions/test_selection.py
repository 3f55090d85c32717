"""Which tests a session runs, and which of other people's the plugin leaves alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.projects import Project, configure, run, run_apart
from tests.stubs.engine import toml

OURS = "@pytest.mark.perf\ndef test_ours(multi_round_qa, kv_context, kv_gate, kv_baseline): pass\n"
THEIRS = "@pytest.mark.perf\ndef test_theirs(): pass\n"
PLAIN = "def test_plain(): pass\n"
#: Declares another marker.
SLOW = ("-o", "markers=slow: x")
#: What a session that measures does and no other one may: a module that only it imports.
HEAVY = "import sys\ndef pytest_unconfigure(): print('heavy:', 'pytest_kvcache.campaign.state' in sys.modules)\n"


def quick(project: Project, *args: str, files: dict[str, str] | None = None) -> pytest.RunResult:
    """Run pytest in this process on a project whose tests are these."""
    for path in project.path.glob("test_*.py"):
        path.unlink()
    for name, text in (files or {"test_it": OURS + THEIRS + PLAIN}).items():
        (project.path / f"{name}.py").write_text("import pytest\n" + text)
    return project.runpytest_inprocess("-p", "no:cacheprovider", *args)


@pytest.mark.parametrize(
    ("args", "passed"),
    [
        ((), 2),
        (("-m", "not perf"), 1),
        ((*SLOW, "-m", "not (perf or slow)"), 1),
        (("-m", "perf", "-k", "theirs"), 1),
        (("-m", "perf and not perf"), 0),
        (("-m", "perf", "-k", "nobody"), 0),
        (("-k", "plain or theirs"), 2),
        (("-k", "ours"), 0),
        (("test_it.py::test_plain",), 1),
        (("test_it.py::test_theirs", "test_it.py::test_plain"), 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("broken", [False, True], ids=["sound", "broken"])
def test_a_session_without_perf_tests_of_ours_is_not_ours(
    project: Project, args: tuple[str, ...], passed: int, broken: bool
) -> None:
    """Other people's tests run whatever marker they have, and neither kvcache.toml nor other plugins are looked at."""
    configure(project, "no toml" if broken else toml())
    result = quick(project, *args)
    found = result.parseoutcomes()
    assert {k: v for k, v in found.items() if k not in {"deselected", "warnings"}} == (
        {"passed": passed} if passed else {}
    )
    assert result.ret == (pytest.ExitCode.OK if passed else pytest.ExitCode.NO_TESTS_COLLECTED)
    assert "kvcache: profile" not in result.stdout.str()


@pytest.mark.parametrize("args", [(), ("-m", "not perf"), ("-m", "perf and not perf"), ("-k", "plain")], ids=str)
def test_nothing_heavy_is_imported_for_others(project: Project, args: tuple[str, ...]) -> None:
    """A session in which no test of ours is asked for imports none of what measures."""
    project.makeconftest(HEAVY)
    (project.path / "test_multi_round_qa.py").write_text("import pytest\n" + OURS + PLAIN)
    result = run_apart(project, *args)
    assert "heavy: False" in result.stdout.str()


@pytest.mark.parametrize(
    "args",
    [
        ("-m", "perf"),
        (*SLOW, "-m", "perf or slow"),
        (*SLOW, "-m", "perf and not slow"),
        ("--tier", "gpu"),
        ("--kv-tier", "gpu"),
        ("--kv-tier=gpu", "-m", "perf"),
        ("test_it.py::test_ours",),
        ("test_it.py::test_ours[gpu-50-ttft]",),
    ],
    ids=str,
)
def test_what_asks_for_perf_tests(project: Project, args: tuple[str, ...]) -> None:
    """A tier, an expression that names and selects the marker, and a node id ask for them; all is checked first."""
    configure(project, toml())
    result = quick(project, "--collect-only", "-q", *args)
    assert "test_it.py::test_ours[gpu-50-ttft]" in result.outlines
    assert any(line.startswith("kvcache: profile stub") for line in result.outlines)
    configure(project, "no toml")
    result = quick(project, *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "cannot be read" in result.stderr.str()


@pytest.mark.parametrize("args", [("-k", "ours"), ("test_it.py",), (*SLOW, "-m", "slow")], ids=str)
def test_who_may_have_meant_perf_tests_gets_a_hint(project: Project, args: tuple[str, ...]) -> None:
    """An expression or a file that would have selected them says what runs them."""
    configure(project, toml())
    result = quick(project, *SLOW, *args, files={"test_it": OURS.replace("def", "@pytest.mark.slow\ndef", 1)})
    result.stdout.fnmatch_lines(["kvcache: 1 perf tests were left out; add -m perf or --tier NAME to run them"])


def test_the_last_failed_get_a_hint(project: Project) -> None:
    """`--lf` after a failed run of perf tests does not boot for minutes unasked: it says what does."""
    configure(project, toml())
    (project.path / "test_multi_round_qa.py").write_text("import pytest\n" + OURS + PLAIN)
    cache = project.path / ".pytest_cache" / "v" / "cache"
    cache.mkdir(parents=True)
    (cache / "lastfailed").write_text(json.dumps({"test_multi_round_qa.py::test_ours[gpu-50-ttft]": True}))
    result = project.runpytest_inprocess("--lf")
    result.stdout.fnmatch_lines(["kvcache: * perf tests were left out; add -m perf *"])


def test_a_plain_session_has_no_hint(project: Project) -> None:
    """Who runs everything is not told each time."""
    result = quick(project)
    assert "left out" not in result.stdout.str()


def test_selection_is_one_pass(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is looked at a few times at most, however many are left out."""
    looked: list[str] = []
    real = pytest.Item.get_closest_marker

    def counted(self: pytest.Item, name: str) -> object:
        looked.append(self.name)
        return real(self, name)

    monkeypatch.setattr(pytest.Item, "get_closest_marker", counted)
    count = 400
    many = "".join(
        f"@pytest.mark.perf\ndef test_{n}(kv_profile): pass\ndef test_plain_{n}(): pass\n" for n in range(count)
    )
    result = quick(project, files={"test_many": many})
    result.assert_outcomes(passed=count, deselected=count)
    assert len([name for name in looked if not name.startswith("test_plain")]) <= 8 * count


@pytest.mark.parametrize("how", ["conftest", "plugin", "dest"])
def test_a_tier_option_of_somebody_else(project: Project, how: str) -> None:
    """Whoever takes `--tier` keeps it; `--kv-tier` works, and is what is offered then."""
    configure(project, toml())
    option = "'--level', dest='tier'" if how == "dest" else "'--tier'"
    text = f"def pytest_addoption(parser): parser.addoption({option}, default='x')\n"
    text += "def pytest_report_header(config): return f'tier={config.option.tier}'\n"
    args = ["-p", "their_plugin"] if how == "plugin" else []
    (project.path / ("their_plugin.py" if how == "plugin" else "conftest.py")).write_text(text)
    project.syspathinsert()
    try:
        short = "--tier" if how == "dest" else "--kv-tier"
        result = quick(project, *args, "-k", "ours")
        result.stdout.fnmatch_lines(["tier=x", f"*add -m perf or {short} NAME to run them"])
        mine = ("--level", "mine") if how == "dest" else ("--tier", "mine")
        result = quick(project, *args, *mine)
        result.stdout.fnmatch_lines(["tier=mine"])
        result.assert_outcomes(passed=2, deselected=1)
        result = quick(project, *args, *mine, "--kv-tier", "gpu", "--collect-only", "-q")
        result.stdout.fnmatch_lines(["test_it.py::test_ours?gpu-50-ttft?"])
        assert result.ret == 0
        result = quick(project, *args, "--kv-tier", "nobody")
        assert f"{short}: unknown tier 'nobody'" in result.stderr.str()
    finally:
        sys.modules.pop("their_plugin", None)


@pytest.mark.parametrize(
    ("ini", "args", "said"),
    [
        ("", ("--reruns", "2"), "--reruns: perf tests are not run again"),
        ("reruns = 2", (), "reruns: perf tests are not run again"),
        ("addopts = --reruns=1", (), "--reruns: perf tests are not run again"),
        ("retries = 1", (), "retries: perf tests are not run again"),
        ("", ("--force-reruns", "1"), "--force-reruns: perf tests are not run again"),
        ("reruns = 2", ("--reruns", "0"), ""),
        ("", ("--forked",), "--forked: perf tests share one pair"),
        ("", ("--parallel-threads=2",), "--parallel-threads: perf tests measure one pair at a time"),
        ("", ("--parallel-threads=1",), ""),
        ("", ("--force-flaky",), "--force-flaky: perf tests are not run again"),
        ("reruns = 0", (), ""),
        ("", ("--reruns", "0"), ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_reruns_are_refused_wherever_they_are_set(project: Project, ini: str, args: tuple[str, ...], said: str) -> None:
    """A verdict that is repeated until it passes is none; other people's tests may be run again."""
    configure(project, toml())
    (project.path / "pyproject.toml").unlink()
    (project.path / "pytest.ini").write_text(f"[pytest]\nkv_profile = stub\n{ini}\n")
    project.makeconftest(
        """
        def pytest_addoption(parser):
            parser.addoption("--reruns", type=int)
            parser.addoption("--force-flaky", action="store_true")
            parser.addoption("--retries", type=int)
            parser.addoption("--force-reruns", type=int)
            parser.addoption("--forked", action="store_true")
            parser.addoption("--parallel-threads", default=1)
            parser.addini("reruns", "x")
            parser.addini("retries", "x")
        """
    )
    result = quick(project, "-m", "perf", "--collect-only", *args)
    assert (result.ret == pytest.ExitCode.USAGE_ERROR) is bool(said)
    assert said in result.stderr.str()
    quick(project, *args).assert_outcomes(passed=2, deselected=1)


@pytest.mark.parametrize(
    ("ini", "env", "args", "marker", "where"),
    [
        ("timeout = 1", "", (), "", "pytest.ini: timeout"),
        ("", "", ("--timeout", "1"), "", "--timeout"),
        ("", "1", (), "", "PYTEST_TIMEOUT"),
        ("timeout = 9999", "", (), "@pytest.mark.timeout(1)\n", "test_it.py::test_ours: the marker timeout"),
        ("timeout = 1", "", (), "@pytest.mark.timeout(0)\n", ""),
        ("timeout = 1", "", ("--timeout", "9999"), "", ""),
        ("", "", (), "", ""),
    ],
    ids=["ini", "option", "environment", "marker", "marker-off", "long", "none"],
)
def test_a_timeout_shorter_than_a_boot_is_named_beforehand(  # noqa: PLR0917 - a row of the table
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    ini: str,
    env: str,
    args: tuple[str, ...],
    marker: str,
    where: str,
) -> None:
    """pytest-timeout would end the first test of each tier: that is said before the first boot."""
    configure(project, toml())
    (project.path / "pyproject.toml").unlink()
    (project.path / "pytest.ini").write_text(f"[pytest]\nkv_profile = stub\n{ini}\n")
    if env:
        monkeypatch.setenv("PYTEST_TIMEOUT", env)
    result = quick(project, "-m", "perf", "--collect-only", *args, files={"test_it": marker + OURS})
    found = [line for line in result.outlines if line.startswith("kvcache: caution: ") and "ends a test after" in line]
    assert [where in line for line in found] == ([True] if where else [])


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (("--update-baselines",), "--update-baselines"),
        (("--kv-record-baselines", "-m", "not perf"), "--record-baselines"),
        (("--kv-against=git:HEAD",), "--kv-against"),
    ],
    ids=str,
)
def test_writing_baselines_without_perf_tests_is_said(project: Project, args: tuple[str, ...], option: str) -> None:
    """Who wants baselines and selects nothing that makes any is told so, before other tests run for nothing."""
    configure(project, toml())
    result = quick(project, *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"{option}: no perf test is selected: add -m perf or --tier NAME" in result.stderr.str()


def test_a_session_that_stops_early_writes_nothing(project: Project) -> None:
    """With -x, a failed test ends the session with others not run: baselines stay as they are, and that is said."""
    configure(project, toml())
    fails = "@pytest.mark.perf\ndef test_fails(kv_profile): assert False\n"
    example = (project.path / "test_multi_round_qa.py").read_text()
    (project.path / "test_zz.py").write_text("import pytest\n" + fails)
    (project.path / "test_multi_round_qa.py").write_text(example)
    result = run(project, "--tier", "gpu", "--record-baselines", "-x")
    result.stdout.fnmatch_lines(["*no baseline was written: the session did not come to its end*"])
    assert not (project.path / "baselines").exists()


@pytest.mark.parametrize("args", [("-n", "2"), ("-d", "--tx", "2*popen"), ("-n", "1", "--dist", "each")], ids=str)
def test_a_distributed_session_is_refused_once(project: Project, args: tuple[str, ...]) -> None:
    """The controller says it, once, and only where perf tests of ours are selected; it does not hang."""
    configure(project, toml())
    result = quick(project, *args)
    assert result.parseoutcomes()["passed"] == 2
    assert "ERROR" not in result.stdout.str()
    done = quick(project, *args, "-m", "perf")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert sum("cannot be distributed" in line for line in done.outlines) == 1


def test_workers_of_none_are_no_workers(project: Project) -> None:
    """`-n 0` distributes nothing."""
    configure(project, toml())
    result = quick(project, "-n", "0", "--tier", "gpu", "--collect-only", "-q")
    assert "test_it.py::test_ours[gpu-50-ttft]" in result.outlines


def test_node_ids_of_classes_and_folders(project: Project, tmp_path: Path) -> None:
    """A class, a file in a folder and an absolute path name a test as much as its own line does."""
    configure(project, toml())
    folder = project.path / "perf"
    folder.mkdir()
    body = OURS.replace("@pytest.mark.perf\ndef test_ours(", "    @pytest.mark.perf\n    def test_ours(self, ")
    (folder / "test_in.py").write_text(f"import pytest\nclass TestIt:\n{body}")
    for arg in ("perf/test_in.py::TestIt", "perf/test_in.py::TestIt::test_ours", f"{folder}/test_in.py::TestIt"):
        result = project.runpytest_inprocess("-p", "no:cacheprovider", "--collect-only", "-q", arg)
        assert any(line.endswith("perf/test_in.py::TestIt::test_ours[gpu-50-ttft]") for line in result.outlines)


@pytest.mark.parametrize(
    ("marker", "args", "runs"),
    [
        ("perf-smoke", ("-m", "not perf-smoke"), False),
        ("perf_smoke", ("-m", "not perf_smoke"), False),
        ("perf.smoke", ("-m", "perf.smoke or plain"), False),
        ("x", ("-m", "perf and not x"), True),
    ],
    ids=str,
)
def test_an_expression_asks_by_the_whole_name(
    project: Project, marker: str, args: tuple[str, ...], *, runs: bool
) -> None:
    """A marker whose name only begins like ours asks for nothing."""
    configure(project, toml())
    result = quick(project, "--collect-only", "-q", "-o", f"markers={marker}: x\n  plain: y", *args)
    assert any("test_ours[gpu-50-ttft]" in line for line in result.outlines) is runs


def test_a_conftest_may_give_the_marker(project: Project) -> None:
    """A marker that is added once tests are collected counts like one in the file."""
    configure(project, toml())
    project.makeconftest(
        """
        import pytest
        def pytest_collection_modifyitems(items):
            for item in items:
                if "ours" in item.name:
                    item.add_marker("perf")
        """
    )
    unmarked = OURS.replace("@pytest.mark.perf\n", "")
    result = quick(project, "--collect-only", "-q", "-m", "perf", files={"test_it": unmarked + PLAIN})
    assert "test_it.py::test_ours[gpu-50-ttft]" in result.outlines
    quick(project, files={"test_it": unmarked + PLAIN}).assert_outcomes(passed=1, deselected=1)


@pytest.mark.parametrize("name", ["kv_tier", "vllm_pair", "kv_profile"])
def test_a_fixture_of_ones_own_name_is_not_ours(project: Project, name: str) -> None:
    """A project that has a fixture of that name itself uses its own, and its tests run as they always did."""
    configure(project, "no toml")
    own = f"@pytest.fixture\ndef {name}(): return 1\n@pytest.mark.perf\ndef test_own({name}): assert {name} == 1\n"
    quick(project, files={"test_it": own}).assert_outcomes(passed=1)
    quick(project, "-m", "perf", files={"test_it": own}).assert_outcomes(passed=1)


@pytest.mark.parametrize("code", [0, 1, 143])
def test_a_session_that_a_plugin_ends_writes_nothing(project: Project, code: int) -> None:
    """Whatever exit code it gives itself, baselines stay as they are while tests have not run, and that is said."""
    configure(project, toml())
    project.makeconftest(
        f"""
        import pytest
        @pytest.hookimpl(trylast=True)
        def pytest_runtest_teardown(item, nextitem):
            if nextitem is not None:
                pytest.exit("enough", returncode={code})
        """
    )
    result = run(project, "--tier", "gpu", "--record-baselines")
    assert result.ret == code
    result.stdout.fnmatch_lines(["*kvcache: no baseline was written: the session did not come to its end"])
    assert not (project.path / "baselines").exists()


@pytest.mark.parametrize("decorate", ["@pytest.mark.flaky(reruns=2)", "@pytest.mark.flaky", "@flaky"])
def test_tests_that_are_marked_to_be_run_again(project: Project, decorate: str) -> None:
    """The markers of plugins and the decorator of the package flaky are refused, an opt-out is not."""
    configure(project, toml())
    flaky = "def flaky(f):\n    f._flaky_max_runs = 2\n    return f\n"
    result = quick(project, "-o", "markers=flaky: x", "-m", "perf", files={"test_it": f"{flaky}{decorate}\n{OURS}"})
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "test_ours[gpu-50-ttft]: perf tests are not run again" in result.stderr.str()
    off = quick(
        project,
        *("-o", "markers=flaky: x", "-m", "perf", "--collect-only"),
        files={"test_it": f"@pytest.mark.flaky(reruns=0)\n{OURS}"},
    )
    assert off.ret == 0


def test_a_distributed_session_that_is_to_write_baselines(project: Project) -> None:
    """Without perf tests it is told so too, once."""
    configure(project, toml())
    result = quick(project, "-n", "1", "--update-baselines")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert sum("no perf test is selected" in line for line in result.outlines) == 1

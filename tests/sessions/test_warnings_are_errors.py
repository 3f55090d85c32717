"""Projects that make every warning an error."""

from __future__ import annotations

import pytest

# Before any session in this process, which would forget what it imports itself: NumPy can be imported once only.
from pytest_kvcache import activation, perf  # noqa: F401
from tests.projects import Project, configure, run
from tests.stubs.engine import toml

_BENCHMARK = {
    "present": [],
    "disabled": ["--benchmark-disable"],
    "verbose": ["--benchmark-verbose"],
    "absent": ["-p", "no:benchmark"],
}
_FAILS = {
    "in the test": ("def test_it(kv_baseline): assert False", "failed"),
    "skipped": ("def test_it(kv_baseline): pytest.skip('x')", "skipped"),
    "without a check": ("def test_it(kv_baseline): pass", "passed"),
    "in a fixture before": (
        "@pytest.fixture\ndef bad(): assert False\ndef test_it(bad, kv_baseline): pass",
        "errors",
    ),
    "in a fixture after": ("@pytest.fixture\ndef bad(): assert False\ndef test_it(kv_baseline, bad): pass", "errors"),
    "with the benchmark asked for first": ("def test_it(benchmark, kv_baseline): assert False", "failed"),
    "late": ("def test_it(request):\n    request.getfixturevalue('kv_baseline')\n    assert False", "failed"),
    "in a TestCase": (
        "class TestIt(unittest.TestCase):\n"
        "    @pytest.fixture(autouse=True)\n"
        "    def bring(self, kv_baseline): self.it = kv_baseline\n"
        "    def test_it(self): assert False",
        "failed",
    ),
}


#: No test can ask for a fixture that is not there; one kind tells whether a louder pytest-benchmark is quiet.
_KINDS = [
    (how, plugin)
    for how, (code, _) in _FAILS.items()
    for plugin in _BENCHMARK
    if not (plugin == "absent" and "benchmark," in code) and (plugin != "verbose" or how == "in the test")
]


@pytest.mark.parametrize(("how", "plugin"), _KINDS)
def test_what_ends_before_the_check_is_told_once(project: Project, how: str, plugin: str) -> None:
    """A test that ends before `check()` has one outcome, its own: pytest-benchmark adds no error and no warning."""
    code, outcome = _FAILS[how]
    configure(project, toml())
    (project.path / "test_multi_round_qa.py").unlink()
    project.makepyfile(f"import pytest, unittest\npytestmark = pytest.mark.perf\n{code}")
    ini = ["-o", "filterwarnings=error"]
    for warnings in (["-W", "error"], [], *([ini] if how == "in the test" else [])):
        result = project.runpytest_inprocess("-p", "no:cacheprovider", "--tier", "gpu", *warnings, *_BENCHMARK[plugin])
        assert {key: n for key, n in result.parseoutcomes().items() if key != "deselected"} == {outcome: 1}
        assert "not used at all" not in result.stdout.str() + result.stderr.str()


@pytest.mark.parametrize("how", ["-W", "environment"])
def test_a_measurement_warns_of_nothing(project: Project, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A whole session, its children among them, passes where every warning is an error."""
    configure(project, toml(contexts=(50, 60)))
    args = ["-W", "error"] if how == "-W" else []
    if how == "environment":
        monkeypatch.setenv("PYTHONWARNINGS", "error")
    result = run(project, "--tier", "gpu", "--record-baselines", *args)
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["chart: *", "baselines written to *"])

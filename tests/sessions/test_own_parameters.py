"""Tests whose author brings `kv_tier`, `kv_context`, `kv_gate` or `kv_profile` himself, or asks for fixtures late."""

from __future__ import annotations

import ast

import pytest

# Before any session in this process, which would forget what it imports itself: NumPy can be imported once only.
from pytest_kvcache import activation, perf  # noqa: F401
from tests.projects import Project, configure
from tests.stubs.engine import toml

_TEST = "def test_it(kv_tier, kv_context, kv_gate): print('GOT', kv_tier.name, kv_context, kv_gate.short)"


def collected(project: Project, *args: str) -> pytest.RunResult:
    """Run the project's tests in this process, with what they print."""
    (project.path / "test_multi_round_qa.py").unlink(missing_ok=True)
    return project.runpytest_inprocess("-p", "no:cacheprovider", "-m", "perf", "-s", *args)


def got(result: pytest.RunResult) -> list[str]:
    """Return what tests said that they got."""
    return [line.partition("GOT ")[2].rstrip(".F") for line in result.outlines if "GOT " in line]


def test_parameters_are_names_and_numbers(project: Project) -> None:
    """What reports keep of a test, its parameters' reprs and its id, is short and has nothing of their classes."""
    configure(project, toml())
    project.makepyfile(f"import pytest\npytestmark = pytest.mark.perf\n{_TEST}")
    project.makeconftest(
        """
        def pytest_collection_finish(session):
            for item in session.items:
                print("ITEM", item.callspec.id, repr(item.callspec.params), sep="|")
        """
    )
    result = collected(project, "--collect-only")
    found = [line.split("|")[1:] for line in result.outlines if line.startswith("ITEM")]
    assert len(found) == 12
    for name, text in found:
        params = ast.literal_eval(text)
        assert name == f"{params['kv_tier']}-{params['kv_context']}-{params['kv_gate']}"
    assert found[0][0] == "gpu-50-ttft"


_HOOK = "def pytest_generate_tests(metafunc):\n    if 'kv_context' in metafunc.fixturenames:"
_OWN = {
    "marker": ("@pytest.mark.parametrize('kv_context', [60, 70])", "", [("gpu", n) for n in (60, 70)]),
    "marker, several": (
        "@pytest.mark.parametrize('kv_context, kv_gate', [(60, 'ttft'), (70, 'decode')], indirect=True)",
        "",
        [("gpu", 60), ("gpu", 70)],
    ),
    "marker, indirect": ("@pytest.mark.parametrize('kv_context', [60], indirect=True)", "", [("gpu", 60)]),
    "hook": (
        "",
        f"{_HOOK} metafunc.parametrize('kv_context', [60, 70])",
        [("gpu", 60), ("gpu", 70)],
    ),
    "hook, indirect": (
        "",
        f"{_HOOK} metafunc.parametrize('kv_context', [60], indirect=['kv_context'])",
        [("gpu", 60)],
    ),
    "fixture": ("", "@pytest.fixture\ndef kv_context(): return 60", [("gpu", 60)]),
    "fixture with params": (
        "",
        "@pytest.fixture(params=[60, 70])\ndef kv_context(request): return request.param",
        [("gpu", 60), ("gpu", 70)],
    ),
    "fixture on ours": ("", "@pytest.fixture\ndef kv_context(kv_context): return 2 * kv_context", [("gpu", 100)]),
    "all of them": (
        "@pytest.mark.parametrize('kv_tier', ['gpu'])\n@pytest.mark.parametrize('kv_gate', ['ttft'])\n"
        "@pytest.mark.parametrize('kv_context', [60])",
        "",
        [("gpu", 60)],
    ),
}


@pytest.mark.parametrize("how", _OWN)
def test_ones_own_parameters_replace_the_plugins(project: Project, how: str) -> None:
    """A test's own parametrize, hook or fixture says what it runs with; the plugin gives only what is left."""
    marker, conftest, expected = _OWN[how]
    configure(project, toml())
    project.makeconftest(f"import pytest\n{conftest}")
    body = "print('GOT', getattr(kv_tier, 'name', kv_tier), kv_context)"
    project.makepyfile(
        f"import pytest\npytestmark = pytest.mark.perf\n{marker}\ndef test_it(kv_tier, kv_context, kv_gate): {body}"
    )
    result = collected(project, "--tier", "gpu")
    assert sorted(set(got(result))) == sorted(f"{tier} {length}" for tier, length in expected)
    result.assert_outcomes(passed=len(got(result)))


def brought(project: Project, code: str, *args: str, conftest: str = "") -> pytest.RunResult:
    """Run a file of perf tests with a conftest of the project's own."""
    configure(project, toml(contexts=(50, 60)))
    project.makeconftest(f"import pytest\nfrom pytest_kvcache.verdict.metrics import DEFAULT_METRICS\n{conftest}")
    project.makepyfile(f"import pytest, unittest\npytestmark = pytest.mark.perf\n{code}")
    return collected(project, *args)


_MEASURE = "def test_it(multi_round_qa): print('GOT', multi_round_qa.tier.name, *multi_round_qa.selected)"
_NEW_TIER = "from pytest_kvcache.tiers.cpu import CpuTier"
_SESSION = "@pytest.fixture(scope='session')\n"


@pytest.mark.parametrize(
    ("code", "conftest", "expected"),
    [
        (f"@pytest.mark.parametrize('kv_tier', ['cpu', 'gpu'])\n{_MEASURE}", "", ["cpu", "gpu"]),
        (_MEASURE, f"{_SESSION}def kv_tier(): return 'cpu'", ["cpu"]),
        (_MEASURE, f"{_NEW_TIER}\n{_SESSION}def kv_tier(): return CpuTier(name='mine')", ["mine"]),
        (_MEASURE, "@pytest.fixture(params=['cpu'])\ndef kv_tier(request): return request.param", ["cpu"]),
        (
            f"@pytest.mark.parametrize('kv_context', [70, 80])\n{_MEASURE.replace('multi_', 'kv_context, multi_', 1)}",
            f"{_SESSION}def kv_tier(): return 'cpu'",
            ["cpu 70 80", "cpu 70 80"],
        ),
    ],
    ids=["direct", "a name", "a tier", "with params", "contexts too"],
)
def test_a_tier_of_ones_own_is_measured(project: Project, code: str, conftest: str, expected: list[str]) -> None:
    """`multi_round_qa` takes `kv_tier` from the test's author, as a name or as a tier, with the contexts asked for."""
    result = brought(project, code, conftest=conftest)
    assert got(result) == expected
    result.assert_outcomes(passed=len(expected))


def test_a_tier_that_the_command_line_leaves_out_is_skipped(project: Project) -> None:
    """Where --tier names others, a test that brings a tier itself is skipped with that reason."""
    code = f"@pytest.mark.parametrize('kv_tier', ['cpu', 'gpu'])\n{_MEASURE}"
    result = brought(project, code, "--tier", "gpu", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*--tier names gpu, and not tier cpu"])


@pytest.mark.parametrize(
    ("code", "conftest", "told"),
    [
        (
            f"@pytest.mark.parametrize('kv_tier', ['nosuch'])\n{_MEASURE}",
            "",
            "kv_tier: unknown tier 'nosuch'; known: gpu,*",
        ),
        (f"@pytest.mark.parametrize('kv_tier', [7])\n{_MEASURE}", "", "kv_tier: must be the name of a tier, not 7"),
        (
            "@pytest.mark.parametrize('kv_context', ['x'], indirect=True)\ndef test_it(kv_context): pass",
            "",
            "context_tokens: must be a whole number of tokens, at least 1, not 'x'",
        ),
        (
            "@pytest.mark.parametrize('kv_context', [-1])\n"
            "def test_it(kv_context, multi_round_qa): multi_round_qa(context_tokens=kv_context)",
            "",
            "context_tokens: must be a whole number of tokens, at least 1, not -1",
        ),
        (
            "@pytest.mark.parametrize('kv_gate', ['speedy'], indirect=True)\ndef test_it(kv_gate): pass",
            "",
            "kv_gate: must be one of ttft, speed, decode, not 'speedy'",
        ),
        (
            "@pytest.mark.parametrize('kv_gate', ['speedy'])\n"
            "def test_it(kv_gate, kv_baseline): kv_baseline.check(None, kv_gate)",
            "",
            "kv_gate: must be one of ttft, speed, decode, not 'speedy'",
        ),
        (_MEASURE, f"{_SESSION}def kv_profile(): return 'cpu-tiny'", "kv_profile: a session runs one profile, stub: *"),
        (
            f"@pytest.mark.parametrize('kv_profile', ['qwen3-8b'])\n{_MEASURE.replace('(', '(kv_profile, ', 1)}",
            "",
            "kv_profile: a session runs one profile, stub: *",
        ),
        (
            _MEASURE,
            "@pytest.fixture\ndef kv_profile(kv_profile): return kv_profile.model_copy(update={'chunk_tokens': 16})",
            "kv_profile: a session runs one profile, stub: *",
        ),
    ],
)
def test_what_a_test_brings_is_checked_before_a_boot(project: Project, code: str, conftest: str, told: str) -> None:
    """A name that means nothing, a length that is none, and another profile fail in a sentence; nothing boots."""
    result = brought(project, code, "--tier", "gpu" if "nosuch" not in code else "cpu", conftest=conftest)
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1
    result.stdout.fnmatch_lines([told])
    assert "Traceback" not in result.stdout.str()
    assert not list((project.path / ".kvcache" / "runs").rglob("*.log"))


@pytest.mark.parametrize(
    ("code", "conftest"),
    [
        ("@pytest.mark.parametrize('kv_tier', ['gpu'])\ndef test_it(kv_tier, vllm_pair): pass", ""),
        ("def test_it(vllm_pair): pass", "@pytest.fixture\ndef kv_tier(): return 'gpu'"),
        ("def test_it(vllm_pair): pass", "@pytest.fixture(scope='module')\ndef kv_profile(): return 'stub'"),
    ],
)
def test_a_pair_of_something_shorter_says_what_to_write(project: Project, code: str, conftest: str) -> None:
    """A pair lives for the session: whoever gives it a tier of a shorter scope is told the word that is missing."""
    result = brought(project, code, "--tier", "gpu", conftest=conftest)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ['*test_it: kv_* lives for a * here, and vllm_pair for the session: write scope="session"*']
    )


def test_a_pair_of_ones_own_tier(project: Project) -> None:
    """With that word a pair of one's own tier boots, once for all tests."""
    result = brought(
        project,
        "@pytest.mark.parametrize('kv_tier', ['cpu'], scope='session')\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_it(kv_tier, n, vllm_pair): print('GOT', vllm_pair.base_url)",
    )
    result.assert_outcomes(passed=2)
    assert len(set(got(result))) == 1
    result.stdout.fnmatch_lines(["*cpu: 2 servers ready*"])


_LATE = {
    "getfixturevalue": "def test_it(request):\n    {0} = request.getfixturevalue('{0}')\n    print('GOT', {0})",
    "TestCase": (
        "class TestIt(unittest.TestCase):\n"
        "    @pytest.fixture(autouse=True)\n"
        "    def bring(self, {0}): self.it = {0}\n"
        "    def test_it(self): print('GOT', self.it)"
    ),
    "usefixtures on a TestCase": (
        "@pytest.mark.usefixtures('{0}')\nclass TestIt(unittest.TestCase):\n    def test_it(self): print('GOT')"
    ),
}


@pytest.mark.parametrize("how", _LATE)
@pytest.mark.parametrize("name", ["multi_round_qa", "kv_tier", "kv_context", "kv_gate", "kv_profile"])
def test_asked_for_where_pytest_gives_no_parameters(project: Project, how: str, name: str) -> None:
    """Late, and in a TestCase, a value is taken where it is the only one; else a sentence says what to write."""
    result = brought(project, _LATE[how].format(name), "--tier", "gpu")
    if name in {"kv_context", "kv_gate"}:
        failed = result.parseoutcomes()
        assert failed.get("failed", 0) + failed.get("errors", 0) == 1
        values = {"kv_context": "50, 60", "kv_gate": "ttft, speed, decode"}[name]
        result.stdout.fnmatch_lines(
            [
                f"{name}: this test would have to run once for each of {values}, *",
                f"  -> name {name} in the arguments *",
            ]
        )
        assert "AttributeError" not in result.stdout.str()
    else:
        result.assert_outcomes(passed=1)
    result = brought(project, _LATE[how].format("kv_tier"))
    result.stdout.fnmatch_lines(["kv_tier: this test would have to run once for each of gpu, cpu, *", "*--tier NAME"])


def test_a_function_that_only_uses_the_fixtures_runs_for_each(project: Project) -> None:
    """`usefixtures`, and an autouse fixture, multiply a function like arguments do."""
    code = "@pytest.mark.usefixtures('kv_tier', 'kv_context')\ndef test_it(): print('GOT')"
    brought(project, code).assert_outcomes(passed=8)
    code = "@pytest.fixture(autouse=True)\ndef bring(kv_context): pass\ndef test_it(): pass"
    brought(project, code).assert_outcomes(passed=2)


def test_a_whole_measurement_in_a_test_case(project: Project) -> None:
    """A TestCase measures and is judged, gates by their short names included, and has its row of pytest-benchmark."""
    code = (
        "class TestIt(unittest.TestCase):\n"
        "    @pytest.fixture(autouse=True)\n"
        "    def bring(self, multi_round_qa, request):\n"
        "        self.measure, self.request = multi_round_qa, request\n"
        "    def test_it(self):\n"
        "        result = self.measure(context_tokens=70)\n"
        "        self.request.getfixturevalue('kv_baseline').check(result, 'speed')"
    )
    result = brought(project, code, "--tier", "gpu", "--record-baselines", "--benchmark-json=b.json", "-v")
    result.assert_outcomes(passed=1)
    assert '"metric": "tokens_per_s"' in (project.path / "b.json").read_text()
    result.stdout.fnmatch_lines(["*processing speed: seconds per token*"])
    assert "not used at all" not in result.stdout.str()


@pytest.mark.parametrize("how", _OWN)
def test_ones_own_parameters_do_no_harm_without_perf(project: Project, how: str) -> None:
    """A plain `pytest` collects such tests without an error; it leaves out those that use a fixture of the plugin."""
    marker, conftest, _ = _OWN[how]
    configure(project, toml())
    project.makeconftest(f"import pytest\n{conftest}")
    project.makepyfile(
        test_it=f"import pytest\n{marker}\n@pytest.mark.perf\ndef test_it(kv_tier, kv_context, kv_gate): pass\n"
        "def test_plain(): pass"
    )
    result = project.runpytest_inprocess("-p", "no:cacheprovider", "test_it.py")
    uses_none = how == "all of them"
    assert result.parseoutcomes().keys() == ({"passed"} if uses_none else {"passed", "deselected"})

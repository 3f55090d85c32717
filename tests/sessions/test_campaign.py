"""One owner of a session: boots are numbered once, cells are measured once, and an interruption is told once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_kvcache import activation, perf  # noqa: F401 - numpy cannot be imported twice in one process
from tests.projects import NOTHING, Project, configure, run_folder, traces
from tests.stubs.engine import toml


def run_here(project: Project, *args: str) -> pytest.RunResult:
    """Run pytest in this process."""
    return project.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:benchmark", *args)


def boots(project: Project, tier: str = "gpu") -> list[str]:
    """Return the folders of a tier's boots in the latest run, with what each measured."""
    folders = sorted((run_folder(project) / tier).iterdir())
    return [" ".join([each.name, *sorted(c.name for c in each.glob("context-*"))]) for each in folders]


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        pytest.param(
            """
            @pytest.mark.parametrize("tokens", [50, 60])
            def test_mine(tokens, multi_round_qa, kv_baseline):
                kv_baseline.check(multi_round_qa(context_tokens=tokens))
            """,
            ["boot-1 context-50", "boot-2 context-60"],
            id="parametrized",
        ),
        pytest.param(
            """
            def test_mine(multi_round_qa, kv_baseline):
                first, second = (multi_round_qa(context_tokens=n) for n in (70, 60))
                assert first.context_tokens == 70 and second.context_tokens == 60
                assert multi_round_qa(context_tokens=70) == first
            """,
            ["boot-1 context-70", "boot-2 context-60"],
            id="in one test",
        ),
        pytest.param(
            """
            def test_mine(multi_round_qa, kv_context):
                assert multi_round_qa(context_tokens=kv_context).context_tokens == kv_context
            def test_other(multi_round_qa):
                multi_round_qa(context_tokens=50), multi_round_qa(context_tokens=61)
            """,
            ["boot-1 context-50", "boot-2 context-61"],
            id="from two tests",
        ),
        pytest.param(
            """
            @pytest.mark.parametrize("kv_context", [60, 70])
            def test_mine(multi_round_qa, kv_context):
                rows = multi_round_qa(context_tokens=kv_context).requests
                users.append(set(rows["user"]))
            def test_users():
                assert users[0] and users[1] and not users[0] & users[1]
            """,
            ["boot-1 context-60 context-70"],
            id="together",
        ),
        pytest.param(
            """
            def test_talk(vllm_pair):
                assert vllm_pair.base_url
            def test_mine(multi_round_qa):
                multi_round_qa(context_tokens=60)
            """,
            ["boot-1 context-60", "pair-1"],
            id="and a shared pair",
        ),
    ],
)
def test_a_tier_is_measured_several_times(
    project: Project, kvcache_home: Path, tests: str, expected: list[str]
) -> None:
    """However often, from wherever and at whichever lengths a tier is measured, each boot has a folder of its own."""
    configure(project, toml())
    project.makepyfile(test_mine="import pytest\npytestmark = pytest.mark.perf\nusers = []\n" + unindent(tests))
    result = run_here(project, "--tier", "gpu", "--record-baselines", "test_mine.py")
    assert result.ret == pytest.ExitCode.OK
    assert boots(project) == expected
    assert traces(project.path, kvcache_home) == NOTHING


def test_a_length_outside_the_profile_has_a_baseline_of_its_own(project: Project) -> None:
    """What is recorded at a length that is none of the profile's is compared at that length, and is not unused."""
    configure(project, toml())
    project.makepyfile(
        test_mine=unindent(
            """
            import pytest
            pytestmark = pytest.mark.perf
            def test_mine(multi_round_qa, kv_baseline):
                kv_baseline.check(multi_round_qa(context_tokens=60))
            """
        )
    )
    args = ("--tier", "gpu", "test_mine.py")
    run_here(project, *args, "--record-baselines").assert_outcomes(passed=1)
    assert [path.name for path in (project.path / "baselines").rglob("*.json")] == ["context-60.json"]
    result = run_here(project, *args, "--kv-strict")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*stub/gpu/60 on gpu is inconclusive*the baseline has 1 boot*"])


@pytest.mark.parametrize("most", [1, 2, 3])
def test_an_a_b_that_cannot_decide_boots_nothing(project: Project, stub_engine: Path, most: int) -> None:
    """--kv-boots below the first look of an A/B is refused, with the numbers that can decide."""
    configure(project, toml())
    result = run_here(project, "--tier", "gpu", f"--kv-against={stub_engine}", "--kv-boots", str(most))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    output = result.stdout.str() + result.stderr.str()
    assert f"--kv-boots: {most} cannot decide A against B: the first look is after 4 boots, 2 of each" in output
    assert not (project.path / ".kvcache").exists()


def test_an_a_b_counts_the_boots_of_both_sides(project: Project, stub_engine: Path) -> None:
    """--kv-boots of an A/B is both sides' together; what of it no look can use is said, and never booted."""
    configure(project, toml(duration_s=0.3))
    result = run_here(project, "--tier", "gpu", f"--kv-against={stub_engine}", "--kv-boots", "6")
    assert [each.partition(" ")[0] for each in boots(project)] == ["aboot-1", "aboot-2", "bboot-1", "bboot-2"]
    result.stdout.fnmatch_lines(["*--kv-boots 6 counts the boots of A and B together, * 4, 8, 12: * 4 at most"])


def unindent(text: str) -> str:
    """Return lines of Python that a test has indented."""
    return re.sub(r"^ {12}", "", text, flags=re.MULTILINE)

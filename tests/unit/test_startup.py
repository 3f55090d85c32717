"""What a pytest session loads for the plugin's sake when none of its tests uses the plugin."""

from __future__ import annotations

import pytest

#: The modules of this package that every pytest session loads. Each costs every test suite of the environment time, so
#: a new one is a decision, and modules of the packages below (`config`, `campaign`, …) are for activated sessions only.
LIGHT = {
    "pytest_kvcache",
    "pytest_kvcache.campaign",
    "pytest_kvcache.campaign.key",
    "pytest_kvcache.fixtures",
    "pytest_kvcache.hookspecs",
    "pytest_kvcache.options",
    "pytest_kvcache.parameters",
    "pytest_kvcache.plugin",
    "pytest_kvcache.selection",
}


def modules(pytester: pytest.Pytester, *args: str) -> set[str]:
    """Return the names of all modules that are loaded when a session in a process of its own ends."""
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)
    assert result.ret == pytest.ExitCode.OK
    (line,) = [line for line in result.outlines if line.startswith("MODULES ")]
    return set(line.split()[1:])


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """Return a project whose tests do not use the plugin; its sessions print the names of the loaded modules."""
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure():
            print("\\nMODULES", *sys.modules)
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(3))
        def test_plain(number, tmp_path):
            pass
        """
    )
    return pytester


@pytest.mark.parametrize("args", [("--collect-only",), ("-m", "not slow")], ids=" ".join)
def test_a_suite_without_our_tests_loads_the_hooks_and_no_more(suite: pytest.Pytester, args: tuple[str, ...]) -> None:
    """Beside what pytest loads anyway there are the modules that hold hooks, options and fixtures, and no other."""
    assert modules(suite, *args) - modules(suite, *args, "-p", "no:kvcache") == LIGHT


def test_a_session_with_our_tests_loads_what_draws_charts_only_to_draw_one(suite: pytest.Pytester) -> None:
    """Collecting perf tests, all configuration checked, loads nothing that draws, and no client of S3 or Docker."""
    suite.makepyfile(
        test_perf="""
        import pytest

        @pytest.mark.perf
        def test_measured(kv_context, kv_gate, multi_round_qa, kv_baseline):
            kv_baseline.check(multi_round_qa(context_tokens=kv_context), kv_gate)
        """
    )
    loaded = modules(suite, "--collect-only", "-m", "perf", "--kv-profile", "cpu-tiny")
    assert "pytest_kvcache.activation" in loaded
    assert not {"vl_convert", "jinja2", "botocore", "docker"} & loaded

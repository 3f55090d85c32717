"""Hooks that another plugin or a conftest.py may implement to learn what is measured (docs/api.md).

They are called in pytest's own process, never while anything is being measured. Their return values are ignored. An
error in a hook costs no measurement: it is printed in a line, at once and at the end of the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_kvcache.api.result import MeasuredBoot, Result
    from pytest_kvcache.api.session import PairBoot, SessionResult
    from pytest_kvcache.api.verdict import Verdict


def pytest_kvcache_boot(config: pytest.Config, boot: PairBoot) -> None:
    """Learn that a pair is ready, before anything is sent to it, or that it could not be booted.

    The hook is called for the pair of `vllm_pair` too.

    Args:
        config: pytest's configuration of the session.
        boot: The pair; `boot.error` says why the pair did not start.
    """


def pytest_kvcache_measured(config: pytest.Config, measured: MeasuredBoot) -> None:
    """Learn that a load is over and its files are written, also where no verdict may rest on it.

    The hook is not called for an interrupted load: it has no figures, and the rows that it kept are in the session's
    folder.

    Args:
        config: pytest's configuration of the session.
        measured: One boot at one context length; `measured.faults` says why it is invalid.
    """


def pytest_kvcache_verdict(config: pytest.Config, item: pytest.Item, result: Result, verdict: Verdict) -> None:
    """Learn the verdict of `kv_baseline.check`, whatever it is, before the check passes or fails the test.

    Args:
        config: pytest's configuration of the session.
        item: The test.
        result: The result that the test checks.
        verdict: The verdict on the gate that the test names, or on the whole cell.
    """


def pytest_kvcache_report(config: pytest.Config, report: SessionResult) -> None:
    """Learn all that the session measured, once, after everything is stopped and the baselines are written.

    The hook is also called where the session was interrupted and where nothing could be measured. It is not called
    where no perf test ran.

    Args:
        config: pytest's configuration of the session.
        report: The results; `report.interrupted` says that the session ended before all was measured.
    """

"""Hooks for others: what a plugin or a conftest.py may implement to learn what is measured (docs/api.md).

All of them are called in pytest's own process, never while anything is being measured. What they return is ignored, and
what they raise costs no measurement: it is told in a line, at once and at the end of the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_kvcache.api.result import MeasuredBoot, Result
    from pytest_kvcache.api.session import PairBoot, SessionResult
    from pytest_kvcache.api.verdict import Verdict


def pytest_kvcache_boot(config: pytest.Config, boot: PairBoot) -> None:
    """Be told that a pair is ready, before anything is sent to it, or that it could not be booted.

    Args:
        config: The session's.
        boot: The pair; `boot.error` says why it did not start. That of `vllm_pair` is among them.
    """


def pytest_kvcache_measured(config: pytest.Config, measured: MeasuredBoot) -> None:
    """Be told that a load is over and its files are written, also where no verdict may rest on it.

    A load that was interrupted is not measured: it has no figures, and what it kept is in the session's folder.

    Args:
        config: The session's.
        measured: One boot at one context length; `measured.faults` says why it is invalid.
    """


def pytest_kvcache_verdict(config: pytest.Config, item: pytest.Item, result: Result, verdict: Verdict) -> None:
    """Be told what `kv_baseline.check` has found, whatever it is, before it passes or fails the test.

    Args:
        config: The session's.
        item: The test.
        result: What the test checks.
        verdict: On the gate that the test names, or on the whole cell.
    """


def pytest_kvcache_report(config: pytest.Config, report: SessionResult) -> None:
    """Be told all that the session measured, once, after everything was stopped and baselines were written.

    Called also where the session was interrupted, and where nothing could be measured; not where no perf test ran.

    Args:
        config: The session's.
        report: The results; `report.interrupted` says that there would have been more.
    """

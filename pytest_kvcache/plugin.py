"""pytest hooks, each one or two calls into the rest. Nothing heavy is imported unless perf tests were asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_kvcache import options, parameters
from pytest_kvcache.fixtures import (
    NoBenchmark,
    _kv_benchmark_clock,
    kv_baseline,
    kv_context,
    kv_gate,
    kv_profile,
    kv_tier,
    multi_round_qa,
    vllm_pair,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "_kv_benchmark_clock",
    "kv_baseline",
    "kv_context",
    "kv_gate",
    "kv_profile",
    "kv_tier",
    "multi_round_qa",
    "vllm_pair",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register options and ini keys."""
    options.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; where perf tests were asked for, check all configuration and load the fixtures."""
    config.addinivalue_line("markers", "perf: measures a KV cache tier on real servers (run with -m perf or --tier)")
    if options.wants_perf(config):
        from pytest_kvcache import activation  # noqa: PLC0415 - heavy

        activation.activate(config)
    if not any(config.pluginmanager.hasplugin(name) for name in ("benchmark", "codspeed")):
        config.pluginmanager.register(NoBenchmark(), "kvcache-no-benchmark")


# The last of its kind: what the author of a test parametrizes is left alone.
@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests that ask for `kv_tier`, `kv_context` and `kv_gate`."""
    asked = parameters.asked(metafunc)
    if asked and not options.wants_perf(metafunc.config):
        for name in asked:
            metafunc.parametrize(name, [pytest.param(None, id="inactive")], indirect=True)
    elif options.wants_perf(metafunc.config):
        from pytest_kvcache import activation  # noqa: PLC0415 - heavy

        activation.parametrize(metafunc, asked)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave perf tests out unless they were asked for; prepare them where they were."""
    if options.wants_perf(config):
        from pytest_kvcache import activation  # noqa: PLC0415 - heavy

        activation.prepare(items)
        return
    left_out = [item for item in items if item.get_closest_marker(options.MARKER)]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Show a test without a decision as what it is, and not as passed."""
    return options.undecided_status(report)


# The innermost wrapper: after all fixtures are torn down, and before the terminal's summary.
@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    """End the run, then write the baselines that it is to leave."""
    try:
        yield
    finally:
        if options.wants_perf(session.config):
            from pytest_kvcache import activation  # noqa: PLC0415 - heavy

            activation.finish(session, exitstatus)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run however the session ended."""
    if options.wants_perf(config):
        from pytest_kvcache import activation  # noqa: PLC0415 - heavy

        activation.close(config)

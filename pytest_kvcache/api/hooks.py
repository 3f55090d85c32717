"""Calls the hooks that other plugins implement, so that an error in one of them costs no measurement."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from pytest_kvcache.api.result import measured_boot, result_of
from pytest_kvcache.api.session import Failure, PairBoot, SessionResult
from pytest_kvcache.api.verdict import verdict_of
from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.campaign.runner import RunResult
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.serving.pair import ServingPair
from pytest_kvcache.verdict.gates import AnyGate

BOOT, MEASURED, VERDICT, REPORT = (f"pytest_kvcache_{name}" for name in ("boot", "measured", "verdict", "report"))

KEY = pytest.StashKey["Hooks"]()


class Hooks:
    """Calls the hooks of `hookspecs.py`; it is a `campaign.listener.Listener`.

    Each plugin and conftest.py is called by itself: one that raises keeps no other from being called. Its error is
    printed in a line, at once and at the end of the session, and changes no verdict and no exit code. Only an
    interruption (Ctrl-C, `pytest.exit`) is passed on.

    Args:
        config: pytest's configuration of the session.
        state: The session's state, which keeps the errors that hooks raised.
    """

    def __init__(self, config: pytest.Config, state: PerfState) -> None:
        self._config, self._state = config, state

    def booted(self, arm: Arm, logs: Path, pair: ServingPair | None, error: str) -> None:
        """Call `pytest_kvcache_boot`."""
        if not self._asked(BOOT):
            return
        boot = PairBoot(
            tier=arm.tier.name,
            profile=arm.profile.name,
            side=arm.name,
            logs=logs,
            boot_s=None if pair is None else pair.boot_s,
            base_url="" if pair is None else pair.base_url,
            metrics_urls={} if pair is None else dict(pair.plan.metrics_urls),
            versions=dict(arm.engine.versions),
            error=error,
        )
        self._call(BOOT, boot=boot)

    def measured(self, run: RunResult) -> None:
        """Call `pytest_kvcache_measured`."""
        if self._asked(MEASURED):
            self._call(MEASURED, measured=measured_boot(run))

    def judged(self, item: pytest.Item, cell: CellResult, gate: AnyGate | None) -> None:
        """Call `pytest_kvcache_verdict`."""
        if self._asked(VERDICT):
            self._call(VERDICT, item=item, result=result_of(cell), verdict=verdict_of(cell, gate))

    def ended(self, *, interrupted: bool) -> None:
        """Call `pytest_kvcache_report` if the session has started anything."""
        state = self._state
        if not state.has_run or not self._asked(REPORT):
            return
        owner = state.campaign
        failures = [Failure(key.tier, key.context_tokens, str(error)) for key, error in owner.failures.items()]
        failures += [Failure(tier, None, str(error)) for tier, error in owner.interruptions.items()]
        report = SessionResult(
            run_id=state.run.id,
            folder=state.run.folder,
            profile=state.profile.name,
            results=tuple(map(result_of, owner.measured)),
            failures=tuple(failures),
            baselines=tuple(state.written),
            engine_minutes=state.engine_minutes,
            interrupted=interrupted,
        )
        self._call(REPORT, report=report)

    def _asked(self, name: str) -> bool:
        return bool(getattr(self._config.hook, name).get_hookimpls())

    def _call(self, name: str, **arguments: object) -> None:
        manager = self._config.pluginmanager
        # pluggy calls the plugin that was registered last first.
        plugins = [impl.plugin for impl in reversed(getattr(self._config.hook, name).get_hookimpls())]
        for plugin in plugins:  # a plugin has one implementation of a hook
            try:
                only = manager.subset_hook_caller(name, [other for other in plugins if other is not plugin])
                only(config=self._config, **arguments)
            except (KeyboardInterrupt, pytest.exit.Exception):
                raise
            except BaseException as error:  # outcomes such as pytest.fail, and SystemExit, are no Exception
                self._note(name, error)

    def _note(self, name: str, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        at = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        said = str(error).strip().partition("\n")[0]
        line = f"hook {name} raised {type(error).__name__}: {said}{at}; what was measured stands"
        self._state.hook_errors.append(line)
        self._state.say(line)

"""The state of a pytest session that runs perf tests; lives in `config.stash` and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pytest

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine import setup
from pytest_kvcache.engine.environment import Engine, inspect
from pytest_kvcache.engine.models import model_folder
from pytest_kvcache.errors import SetupError
from pytest_kvcache.home import home
from pytest_kvcache.report.rows import CellReport
from pytest_kvcache.runs import processes
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.launchers.process import ProcessLauncher
from pytest_kvcache.settings import Settings
from pytest_kvcache.telemetry.hardware import hardware
from pytest_kvcache.telemetry.memory import MemoryWatch
from pytest_kvcache.tiers.base import TierContext
from pytest_kvcache.verdict.baseline import Write

KEY = pytest.StashKey["PerfState"]()


class PerfState:
    """What the fixtures of one session share. Nothing is made before it is needed.

    Args:
        settings: The checked configuration.
        say: Writes a line to the terminal.

    Attributes:
        reports: What was measured, in order, by the folder of its results.
        writes: Baselines to write at the end of the session.
        written: The files that were.
        peak_memory_bytes: Of the run, once it is closed.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.say = say
        self.reports: dict[Path, CellReport] = {}
        self.writes: list[Write] = []
        self.written: list[Path] = []
        self.peak_memory_bytes = 0
        self._workloads = 0
        self._memory: MemoryWatch | None = None

    @property
    def profile(self) -> Profile:
        """The profile that runs."""
        return self.settings.profile

    @cached_property
    def engine(self) -> Engine:
        """The engine environment.

        Raises:
            SetupError: There is none, or it cannot be used.
        """
        if self.settings.options.engine is not None:
            return inspect(self.settings.options.engine)
        found = setup.installed(home())
        if found is None:
            raise SetupError(
                "the engine environment is not there, or belongs to another lock",
                where=str(setup.engine_path(home())),
                todo="run `pytest-kvcache setup`, or name an existing environment with --kv-engine",
            )
        return found

    @cached_property
    def model_folder(self) -> Path | None:
        """Folder of the model; None where vLLM finds it by its name."""
        return model_folder(self.profile, self.engine, home())

    @cached_property
    def run(self) -> RunSession:
        """The run: made, and earlier ones that were killed cleaned up after, at the first use."""
        run = RunSession(home(), self.settings.options.runs, self.say)
        self._memory = MemoryWatch(lambda: processes.members(run.journal.record.leaders))
        return run

    @cached_property
    def launcher(self) -> ProcessLauncher:
        """Starts the components of this run."""
        return ProcessLauncher(self.run)

    @cached_property
    def hardware(self) -> dict[str, str]:
        """The machine."""
        return hardware()

    def tier_context(self) -> TierContext:
        """What a tier may use while it plans."""
        return TierContext(
            profile=self.profile,
            run_id=self.run.id,
            scratch=self.run.scratch,
            storage_home=self.run.storage_home,
            tool=self.engine.find,
            port=self.run.ports.take,
            environ=os.environ,
        )

    def next_workload(self) -> int:
        """Return the number of the next workload of the session, from 0."""
        number = self._workloads
        self._workloads += 1
        return number

    def tier_folder(self, tier: str) -> Path:
        """Return the folder of the results and logs of a tier."""
        folder = self.run.folder / tier
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def has_run(self) -> bool:
        """Whether anything was started."""
        return "run" in self.__dict__

    def close(self) -> None:
        """End the run and leave nothing; a second call does nothing."""
        if self._memory is not None:
            self._memory.stop()
            self.peak_memory_bytes = self._memory.peak_bytes
            self._memory = None
        if self.has_run:
            self.run.close()

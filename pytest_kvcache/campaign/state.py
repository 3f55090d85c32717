"""The state of a pytest session that runs perf tests; lives in `config.stash` and nowhere else."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.campaign.campaign import Campaign
from pytest_kvcache.campaign.deployments import authorization_of
from pytest_kvcache.campaign.gpus import BootGpus
from pytest_kvcache.campaign.listener import Listener, Nobody
from pytest_kvcache.campaign.progress import Progress, Silent
from pytest_kvcache.campaign.settings import Settings
from pytest_kvcache.config import environment
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.deployment import standing
from pytest_kvcache.engine import setup
from pytest_kvcache.engine.attached import AttachedEngine
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.engine.named import engine_named
from pytest_kvcache.errors import ConfigError, RunError, SetupError
from pytest_kvcache.home import home
from pytest_kvcache.probes.balancer_latency import BalancerLatency
from pytest_kvcache.runs import processes
from pytest_kvcache.runs.machine import PROCESSORS, MachineLock
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.launchers.process import ProcessStarter
from pytest_kvcache.serving.tier import Tier
from pytest_kvcache.telemetry.allotment import allotment, dealt
from pytest_kvcache.telemetry.hardware import hardware, unique_names
from pytest_kvcache.telemetry.memory import MemoryWatch
from pytest_kvcache.tiers.none import NoTier
from pytest_kvcache.verdict.paired import PairedVerdict
from pytest_kvcache.verdict.procedure import CellVerdict


class PerfState:
    """What the fixtures of one session share. Nothing is made before it is needed.

    Args:
        settings: The checked configuration.
        say: Writes a line to the terminal.

    Attributes:
        campaign: Owns the numbers of boots, their results, and what cut them short.
        listener: Is told of boots and loads.
        progress: Shows what is under way.
        told: By message of a failure, the test that has it whole.
        written: The files that were.
        hook_errors: What hooks of others raised, a line each.
        undecided: Tests without a decision: node id, status, reason.
        usable: Tiers that were found to be able to run here.
        preflight: By tier, why no pair should be booted; empty where nothing speaks against it.
        gpus: What the GPUs of each boot did.
        stopping: By profile, engine and whether it offloads, why no pair should be booted.
        cautions_told: Cautions that were told, each once.
        balancers: What each balancer of the session costs, by its kind, policy and version.
        engine_minutes: For which pairs were running.
        fixed_minutes: That designs without looks would have taken for the same verdicts.
        peak_memory_bytes: Of the run, once it is closed.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.say = say
        self.campaign = Campaign()
        self.listener: Listener = Nobody()
        self.progress: Progress = Silent()
        self.told: dict[str, str] = {}
        self.written: list[Path] = []
        self.hook_errors: list[str] = []
        self.undecided: list[tuple[str, str, str]] = []
        self.usable: list[Tier] = []
        self.preflight: dict[str, tuple[str, ...]] = {}
        self.gpus: list[BootGpus] = []
        self.stopping: dict[tuple[str, str, bool], tuple[str, ...]] = {}
        self.cautions_told: set[str] = set()
        self.balancers: dict[str, BalancerLatency] = {}
        self.engine_minutes = 0.0
        self.fixed_minutes = 0.0
        self.peak_memory_bytes = 0
        self._run: RunSession | None = None
        self._ending = threading.RLock()
        self._ended = False
        self._memory: MemoryWatch | None = None
        self._claim: MachineLock | None = None
        self._attached: dict[str, AttachedEngine] = {}

    @property
    def profile(self) -> Profile:
        """The profile that runs."""
        return self.settings.profile

    @cached_property
    def engine(self) -> BaseEngine:
        """The engine.

        Raises:
            ConfigError: Its image cannot be used here.
            SetupError: There is none, or it cannot be used.
        """
        name = self.settings.engine_of(self.profile)
        if name is not None:
            return engine_named(name, self.settings.mounts)
        found = setup.installed(home())
        if found is None:
            raise SetupError(
                "the engine environment is not there, or belongs to another lock",
                where=str(setup.engine_path(home())),
                todo="run `pytest-kvcache setup`, or name an existing environment with --kv-engine",
            )
        return found

    @property
    def run(self) -> RunSession:
        """The run: made, and earlier ones that were killed cleaned up after, at the first use.

        Raises:
            ConfigError: Its folders cannot be written.
            RunError: The session ended before there was any.
        """
        with self._ending:
            if self._run is None:
                if self._ended:
                    raise RunError("nothing is started any more: the session has ended")
                self._run = run = RunSession(home(), self.settings.options.runs, self.say)
                if line := environment.inheritance_line(os.environ):
                    self.say(line)
                self._memory = MemoryWatch(lambda: processes.members(run.leaders))
            return self._run

    def engine_of(self, tier: Tier) -> BaseEngine:
        """Return what serves a tier: the session's engine, or the deployment that stands for the tier.

        Raises:
            BootError: Servers of the deployment cannot be found.
            ConfigError: No deployment was named for the tier.
            SetupError: There is no engine.
        """
        if not self.settings.attaches:
            return self.engine
        if tier.name not in self._attached:
            wanted = self.settings.deployment(tier)
            inside = self.profile.lmcache_mode == "in-process" and not isinstance(tier, NoTier)
            found = standing.find(wanted, lmcache_inside=inside, authorization=authorization_of(wanted, os.environ))
            self._attached[tier.name] = AttachedEngine(found)
        return self._attached[tier.name]

    def hardware_of(self, tier: Tier) -> dict[str, str]:
        """Return the machine that serves a tier: this one, or what is known of a deployment."""
        engine = self.engine_of(tier) if self.settings.attaches else None
        return engine.standing.known() if isinstance(engine, AttachedEngine) else self.hardware

    def claim_machine(self) -> None:
        """Take what servers run on, so that no other session measures beside this one.

        Where too few GPUs are allotted none is taken: the tests say that, and boot nothing.

        Raises:
            RunError: Another session has it, for longer than is to be waited.
        """
        profiles = [self.profile] if not self.settings.attaches else []
        if self.settings.other is not None:
            profiles.append(self.settings.other.profile(self.profile.name))
        names: list[str] = []
        for profile in profiles:
            each = profile.gpus_per_server
            with contextlib.suppress(ConfigError):
                servers = dealt(allotment(os.environ), servers=profile.servers, each=each)
                names += unique_names([name for gpus in servers for name in gpus]) if each else [PROCESSORS]
        if self.settings.attaches:  # the load is sent from here, and other sessions' loads would delay it
            names = [PROCESSORS]
        self._claim = MachineLock(names)
        self._claim.acquire(self.settings.options.wait_s, self.say)

    @cached_property
    def launcher(self) -> ProcessStarter:
        """Starts processes of this run, the load's among them."""
        return ProcessStarter(self.run)

    @cached_property
    def hardware(self) -> dict[str, str]:
        """The machine, with the GPUs that servers use and no other one."""
        names = dealt(allotment(os.environ), servers=self.profile.servers, each=self.profile.gpus_per_server)
        return hardware([name for each in names for name in each])

    def other_arm(self, tier: Tier) -> Arm | None:
        """Return what `tier` is compared with under --kv-against, None where with baselines.

        Raises:
            ConfigError: The other configuration has no such tier.
            SetupError: The other engine cannot be used.
        """
        against = self.settings.options.against
        if against is None:
            return None
        if self.settings.other is not None:
            (other,) = self.settings.other.select([tier.name])
            profile = self.settings.launched(self.settings.other.profile(self.profile.name))
            return Arm("B", self.other_engine, profile, other)
        return Arm("B", self.other_engine, self.profile, tier)

    @cached_property
    def other_engine(self) -> BaseEngine:
        """The engine of --kv-against; of a revision of kvcache.toml, the one that its profile names."""
        if self.settings.other is not None:
            name = self.settings.engine_of(self.settings.other.profile(self.profile.name))
            if name is None or name == self.settings.engine_of(self.profile):
                return self.engine
            return engine_named(name, self.settings.mounts)
        return engine_named(self.settings.options.against or "", self.settings.mounts)

    def note_decided(self, verdict: CellVerdict | PairedVerdict, fixed_minutes: float) -> None:
        """Count what a final verdict would have cost without looks, in minutes; cells of one tier share their boots."""
        if verdict.status in {"pass", "improved", "regressed", "inconclusive"}:
            self.fixed_minutes += fixed_minutes / len(self.profile.workload.context_tokens)

    def tier_folder(self, tier: str) -> Path:
        """Return the folder of the results and logs of a tier."""
        folder = self.run.folder / tier
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def has_run(self) -> bool:
        """Whether anything was started."""
        return self._run is not None

    def close(self) -> None:
        """End the run and leave nothing; a second call does nothing. Whoever leaves by force calls it in a thread."""
        with self._ending:
            self._ended = True
            memory, self._memory = self._memory, None
        if memory is not None:
            memory.stop()
            self.peak_memory_bytes = memory.peak_bytes
        if self._run is not None:
            self._run.close()
        if self._claim is not None:
            self._claim.release()

"""The interface of launchers, which place the components of a pair, start them, and say whether they live."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.runs.files import remove_tree
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.plan import ServingPlan
from pytest_kvcache.serving.tier import Tier
from pytest_kvcache.telemetry.allotment import Allotment


def prepared_log(component: Component, logs: Path) -> Path:
    """Make a component's folders and files; return its log file, which then exists and may have earlier output."""
    logs.mkdir(parents=True, exist_ok=True)
    for folder in component.folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    for path, text in component.files.items():
        path.write_text(text, encoding="utf-8")
    log = (logs / f"{component.name}.log").resolve()
    log.touch()
    return log


def remove_folders(component: Component) -> None:
    """Remove the folders of a component that has ended."""
    for folder in component.folders:
        shutil.rmtree(folder, ignore_errors=True)


def no_proxy(*hosts: str) -> dict[str, str]:
    """Return the environment in which loopback, and `hosts`, are never reached through a proxy."""
    names = ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1,localhost", *sorted(hosts)]))
    return {"NO_PROXY": names, "no_proxy": names}


class Handle(Protocol):
    """A started component."""

    @property
    def component(self) -> Component:
        """The component that was started."""

    @property
    def log(self) -> Path:
        """The file with its output."""

    def exit_code(self) -> int | None:
        """Return None while the component runs; a negative number is the signal that ended it."""


class Starter(Protocol):
    """Starts and ends components."""

    def start(self, component: Component, logs: Path) -> Handle:
        """Start a component, with its output in `logs`/NAME.log on this machine.

        Raises:
            BootError: It could not be started.
        """

    def stop(self, handles: list[Handle]) -> None:
        """End the components of `handles` and all processes that they started, side by side."""


class Launcher(Starter, Protocol):
    """Boots one pair.

    An entry point of the group `pytest_kvcache.launchers` is called with the `Launch` of each boot and returns one.
    """

    @property
    def name(self) -> str:
        """The name by which `--kv-launcher` chooses it, which is a comparability key."""

    def plan(self) -> ServingPlan:
        """Return what is to be started, placed; nothing is started here.

        The plan says at which URLs the servers' metrics are, as they are reached from this machine.

        Raises:
            BootError: A machine that the pair needs is not there, or is not as it must be.
        """

    def prepare(self) -> None:
        """Make the tier's folders, on each machine on which servers run."""

    def restart(self, handle: Handle, logs: Path) -> Handle:
        """End one component and start it anew; its output goes on in the same log."""

    def describe(self) -> Mapping[str, str]:
        """Return where and how components run, for the record of a run's environment; no secret is in it."""

    def clear(self) -> None:
        """Remove the tier's folders with all content; called once after `stop`, also where the boot failed."""


@dataclass(frozen=True)
class Launch:
    """One boot of a tier, as a launcher gets it.

    Args:
        run: The present run, which owns what is started.
        engine: Environment or image with vLLM and LMCache.
        profile: Profile to serve.
        tier: Plan of the tier.
        model: Folder of the model where it was made on the spot; None where vLLM finds it by its name.
        gpus: GPUs that the caller may use; None where nothing allots any.
        say: Writes a line to the terminal.
        kind: The tier itself, for launchers that have other machines look at its storage.
    """

    run: RunSession
    engine: BaseEngine
    profile: Profile
    tier: TierPlan
    model: Path | None = None
    gpus: Allotment | None = None
    say: Callable[[str], None] = lambda _: None
    kind: Tier | None = None

    def linked_model(self) -> str:
        """Return what vLLM gets for the model: its name, or the name of a link in its working folder, made here.

        LMCache's keys begin with the model as vLLM was given it. Its S3 adapter makes "//…" of an absolute path, and
        every store fails, silently but for its log: so no tier ever sees an absolute one.
        """
        if self.model is None:
            return self.profile.model
        link = self.run.scratch / self.model.name
        if not link.is_symlink():
            link.symlink_to(self.model)
        return self.model.name


def make_folders(launch: Launch) -> None:
    """Make the tier's folders on this machine; each is recorded before it is there."""
    for folder in launch.tier.folders:
        launch.run.make_folder(folder)


def remove_tier_folders(launch: Launch) -> None:
    """Remove the tier's folders on this machine, and say so where one stays."""
    for folder in launch.tier.folders:
        if why := remove_tree(folder).kept:
            launch.say(f"could not remove {folder}: {why} The session's end tries again")

"""The interface of launchers, which start components and say whether they live."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol

from pytest_kvcache.serving.component import Component


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


def no_proxy() -> dict[str, str]:
    """Return the environment in which loopback is never reached through a proxy."""
    names = ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1,localhost"]))
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


class Launcher(Protocol):
    """Starts and ends components."""

    def start(self, component: Component, logs: Path) -> Handle:
        """Start a component, with its output in `logs`/NAME.log."""

    def stop(self, handles: list[Handle]) -> None:
        """End the components of `handles` and all processes that they started, side by side."""

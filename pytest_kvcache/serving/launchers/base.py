"""What a launcher does: start a component and say whether it lives."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pytest_kvcache.serving.component import Component


class Handle(Protocol):
    """A started component."""

    @property
    def component(self) -> Component:
        """What was started."""

    @property
    def log(self) -> Path:
        """Its output."""

    def exit_code(self) -> int | None:
        """None while it runs; a negative number is the signal that ended it."""


class Launcher(Protocol):
    """Starts and ends components."""

    def start(self, component: Component, logs: Path) -> Handle:
        """Start a component, with its output in `logs`/NAME.log."""

    def stop(self, handles: list[Handle]) -> None:
        """End these and all that they started, side by side."""

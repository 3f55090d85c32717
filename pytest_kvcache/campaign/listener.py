"""Whom a session tells of its boots and loads while it works; the plugin's hooks stand behind it (`api/hooks.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.campaign.runner import RunResult
from pytest_kvcache.serving.pair import ServingPair


class Listener(Protocol):
    """Is told what happens, when it happens. What it does must raise nothing."""

    def booted(self, arm: Arm, logs: Path, pair: ServingPair | None, error: str) -> None:
        """A pair is ready, or could not be booted.

        Args:
            arm: What was to be served.
            logs: Folder of its components' output.
            pair: None where it did not start.
            error: Why not, "" where it did.
        """

    def measured(self, run: RunResult) -> None:
        """A load is over and its files are written; also one that no verdict may rest on."""


class Nobody:
    """Stands where nobody listens."""

    def booted(self, arm: Arm, logs: Path, pair: ServingPair | None, error: str) -> None:
        """Do nothing."""

    def measured(self, run: RunResult) -> None:
        """Do nothing."""

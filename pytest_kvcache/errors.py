"""Errors for the person at the terminal; each says what failed, where, and what to do next."""

from __future__ import annotations


class KvCacheError(Exception):
    """Base of every error that the plugin raises on purpose.

    Args:
        what: The failure in one sentence.
        where: File, key, component or log in which the failure lies.
        todo: The next step for the person who reads the error.
    """

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what = what
        self.where = where
        self.todo = todo
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.todo:
            parts.append(f"  -> {self.todo}")
        return "\n".join(parts)


class ConfigError(KvCacheError):
    """A setting is wrong; raised before anything boots."""


class SetupError(KvCacheError):
    """The engine environment cannot be made or used on this machine."""


class TierUnavailableError(KvCacheError):
    """A tier cannot run here."""


class BootError(KvCacheError):
    """A component of a serving pair failed to start or died."""


class RunError(KvCacheError):
    """A workload could not be carried out as asked."""


class BaselineError(KvCacheError):
    """A baseline file cannot be read or written."""


class ResultsError(KvCacheError):
    """A file that a run or another tool left cannot be read."""


class NotMeasuredError(KvCacheError):
    """A test asked for a figure that was not measured, or for a figure of an invalid run."""

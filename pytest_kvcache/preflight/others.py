"""Ask `nvidia-smi` which GPU a name means, and which processes use the GPU."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pytest_kvcache.telemetry.listing import APPS, LISTING, App, Listed, apps, listed


def ask(argv: Sequence[str]) -> str:
    """Return the output of a program, "" where the program is missing or fails."""
    if shutil.which(argv[0]) is None:
        return ""
    done = subprocess.run(argv, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=30)
    return done.stdout if done.returncode == 0 else ""


@dataclass(frozen=True)
class Others:
    """The GPUs of this machine by name, and the processes that use them.

    Args:
        says: Returns the output of `nvidia-smi` for a command line.
    """

    says: Callable[[Sequence[str]], str] = ask

    @cached_property
    def _listed(self) -> list[Listed]:
        return list(listed(self.says(LISTING)))

    @cached_property
    def _apps(self) -> list[App]:
        return apps(self.says(APPS))

    def number_of(self, name: str) -> str | None:
        """Return the number of the GPU that `CUDA_VISIBLE_DEVICES` calls `name`, None where there is none.

        An abbreviation that two GPUs share names none.
        """
        if name.isdecimal():
            return name
        found = [each.index for each in self._listed if each.is_named(name)]
        return found[0] if len(found) == 1 else None

    def on(self, index: str) -> str:
        """Return the processes on the GPU with the number `index`, the largest memory first, "" where none is shown."""
        uuids = {each.uuid for each in self._listed if each.index == index}
        found = sorted((app for app in self._apps if app.gpu in uuids), key=lambda app: -(app.memory_mib or 0))
        return ", ".join(map(str, found))

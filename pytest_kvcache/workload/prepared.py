"""A workload whose script is made: how one that a test brings gets to the load process, which has not its class."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal, Self

from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.script import Script
from pytest_kvcache.workload.tokens import Tokenizer

KIND: Literal["prepared"] = "prepared"


class Prepared(Workload):
    """The script of another workload, in a file of this run. It cannot be named in `kvcache.toml`.

    Args:
        script_file: The pickled `Script`.
        origin: What decides the requests, as the other workload says it.
    """

    kind: Literal["prepared"] = KIND
    script_file: Path
    origin: dict[str, Any]

    @classmethod
    def of(cls, workload: Workload, script: Script, *, context_tokens: int, file: Path) -> Self:
        """Write a script down and return what has it sent.

        Args:
            workload: That made it: its limits and budgets stay.
            script: What it made.
            context_tokens: For that length.
            file: Is made, to be read by the load process.
        """
        # Pickle keeps texts that prompts share one object.
        file.write_bytes(pickle.dumps(script, protocol=pickle.HIGHEST_PROTOCOL))
        common = {name: getattr(workload, name) for name in Workload.model_fields if name != "kind"}
        common["workers"] = workload.worker_count(script)
        return cls(**common, script_file=file, origin=workload.sent(context_tokens))

    @property
    def needs_tokenizer(self) -> bool:
        """Its texts are made."""
        return False

    def script(self, context_tokens: int, tokenizer: Tokenizer | None, *, first_user: int = 0) -> Script:  # noqa: ARG002
        """Return what is in the file."""
        found = pickle.loads(self.script_file.read_bytes())  # noqa: S301 - this run's own file
        if not isinstance(found, Script):
            raise TypeError(f"{self.script_file} has no script")
        return found

    def sent(self, context_tokens: int) -> dict[str, Any]:  # noqa: ARG002
        """Return what the other workload says."""
        return dict(self.origin)

"""A workload whose script is already made.

A workload that a test defines gets to the load process in this form, since that process does not have its class.
"""

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
        origin: What decides the requests, as `sent` of the other workload returned it.
    """

    kind: Literal["prepared"] = KIND
    script_file: Path
    origin: dict[str, Any]

    @classmethod
    def of(cls, workload: Workload, script: Script, *, context_tokens: int, file: Path) -> Self:
        """Write `script` to a file and return the workload that sends it.

        Args:
            workload: The workload that made the script; its limits and budgets are kept.
            script: The script to send.
            context_tokens: Length of the user context that the script was made for.
            file: The file to write, for the load process to read.
        """
        # Pickle keeps a text that several prompts share as one object.
        file.write_bytes(pickle.dumps(script, protocol=pickle.HIGHEST_PROTOCOL))
        common = {name: getattr(workload, name) for name in Workload.model_fields if name != "kind"}
        common["workers"] = workload.worker_count(script)
        return cls(**common, script_file=file, origin=workload.sent(context_tokens))

    @property
    def needs_tokenizer(self) -> bool:
        """Always False, since the texts are already made."""
        return False

    def script(self, context_tokens: int, tokenizer: Tokenizer | None, *, first_user: int = 0) -> Script:  # noqa: ARG002
        """Return the script in the file.

        Raises:
            TypeError: The file holds something else.
        """
        found = pickle.loads(self.script_file.read_bytes())  # noqa: S301 - this run's own file
        if not isinstance(found, Script):
            raise TypeError(f"{self.script_file} has no script")
        return found

    def sent(self, context_tokens: int) -> dict[str, Any]:  # noqa: ARG002
        """Return what decides the requests of the other workload."""
        return dict(self.origin)

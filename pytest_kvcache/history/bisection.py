"""The steps of a bisect, kept in a file so that one that was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pytest_kvcache.errors import ResultsError
from pytest_kvcache.history.halving import Halving, Outcome
from pytest_kvcache.runs.files import write_json


class Step(BaseModel):
    """A release that was tested.

    Args:
        version: Of the release.
        outcome: Whether it is good, bad or has no verdict.
        line: Verdict with interval, or why there is none.
        command: The session's command; empty where none was started.
        minutes: How long it took, with set-up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    version: str
    outcome: Outcome
    line: str
    command: list[str]
    minutes: float


class _File(BaseModel):
    model_config = ConfigDict(frozen=True)

    steps: list[Step]


@dataclass(frozen=True)
class Bisection:
    """Releases and the steps over them.

    Args:
        path: The file that keeps the steps.
        question: What is asked, by name: steps count only for the same question.
        versions: Oldest, which is good, to newest.
        steps: So far, in the order in which they were made.
    """

    path: Path
    question: Mapping[str, str]
    versions: tuple[str, ...]
    steps: tuple[Step, ...] = ()

    @property
    def halving(self) -> Halving:
        """What the steps have shown."""
        return Halving(len(self.versions), {self.versions.index(step.version): step.outcome for step in self.steps})

    def added(self, step: Step) -> Bisection:
        """Return the bisection with one more step, which is in the file by then."""
        found = replace(self, steps=(*self.steps, step))
        found.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(found.path, {"question": dict(self.question), "steps": [each.model_dump() for each in found.steps]})
        return found


def begun(folder: Path, question: Mapping[str, str], versions: Sequence[str], *, again: bool = False) -> Bisection:
    """Return a bisection with the steps that an earlier one of the same question has left.

    Args:
        folder: Where bisections are kept.
        question: What is asked; it gives the file its name.
        versions: Oldest to newest; steps of other versions are left out.
        again: Earlier steps do not count, and the first new one takes their place in the file.

    Raises:
        ResultsError: The file is damaged.
    """
    digest = hashlib.sha256(json.dumps(dict(question), sort_keys=True).encode()).hexdigest()[:8]
    words = (question[key] for key in ("package", "good", "bad", "tier") if key in question)
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', '-'.join(words))[:100]}-{digest}.json"
    empty = Bisection(path, question, tuple(versions))
    if again or not path.is_file():
        return empty
    try:
        steps = _File.model_validate_json(path.read_bytes()).steps
    except (ValidationError, OSError):
        raise ResultsError(
            "the steps so far cannot be read: the file is damaged", where=str(path), todo="--again starts anew"
        ) from None
    kept = {step.version: step for step in steps if step.version in versions[1:]}
    return replace(empty, steps=tuple(kept.values()))

"""The base of everything that a person or another process writes down for us."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of all settings: unknown keys are errors and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

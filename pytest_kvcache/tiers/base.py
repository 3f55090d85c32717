"""The base of the tier kinds: a validated table of `kvcache.toml` that says what the tier adds to a serving pair."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.strict import NonBlank, Strict
from pytest_kvcache.verdict.cells import FolderName


class TierModel(Strict):
    """Base of the tier kinds: a validated, immutable table of `kvcache.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: FolderName
    launcher: NonBlank | None = Field(
        default=None, description="what boots the servers of this tier, in place of what the profile or an option says"
    )

    def label(self, ctx: TierContext) -> str:  # noqa: ARG002 - part of the protocol
        """Return the tier's name; tiers with a stand-in override this."""
        return self.name

    def unavailable(self, ctx: TierContext) -> str | None:  # noqa: ARG002 - part of the protocol
        """Return None, since nothing is needed beyond the engine; tiers that need more override this."""
        return None

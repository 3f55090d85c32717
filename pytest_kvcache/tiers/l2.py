"""`kind = "lmcache-l2"`: any L2 adapter that LMCache knows, given as the adapter's own JSON."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import Field, field_validator

from pytest_kvcache.paths import expanded
from pytest_kvcache.serving.offload import Offload, TierPlan, salt_of
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.tiers.base import TierModel
from pytest_kvcache.tiers.fs import OWN_TMP

#: Adapters of LMCache that write files: servers on one folder need temporary folders of their own.
_WRITE_FILES = frozenset({"fs", "fs_native"})
_SECRET = re.compile(r"secret|password|passwd|token|access_key|api_key|credential", re.IGNORECASE)

_PATH_KEYS = ("path", "dir")


def _is_path(key: str, value: Any) -> bool:
    """Whether a value of an adapter is a path with something to expand, which LMCache itself would not do."""
    return isinstance(value, str) and key.endswith(_PATH_KEYS) and (value.startswith("~") or "$" in value)


class L2Tier(TierModel):
    """The tier with CPU RAM and a storage that LMCache reaches by itself (`lmcache server --l2-adapter`).

    The storage is not the run's own: keys of each boot carry a salt, so that the boot starts cold, and objects stay.
    Only LMCache's multi-process mode has these adapters, so the profile must say `lmcache_mode = "mp"`.
    """

    kind: Literal["lmcache-l2"]
    adapter: dict[str, Any] = Field(description="the adapter's JSON, with its `type`")

    @field_validator("adapter")
    @classmethod
    def _check_adapter(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("type"), str):
            raise ValueError('needs a `type`, for instance {type = "resp", host = "…", port = 6379}')
        secret = [key for key in value if _SECRET.search(key)]
        if secret:
            raise ValueError(
                f"{', '.join(secret)} would be readable in the process list; leave it out and set the "
                "adapter's environment variable instead"
            )
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot be written as JSON: {error}") from None
        return {key: expanded(each) if _is_path(key, each) else each for key, each in value.items()}

    def unavailable(self, ctx: TierContext) -> str | None:
        """Return why the tier cannot run: the profile's mode of LMCache has no L2 adapters."""
        if ctx.profile.lmcache_mode != "mp":
            return f'profile {ctx.profile.name} has lmcache_mode = "in-process"; L2 adapters need "mp"'
        return None

    def plan(self, ctx: TierContext) -> TierPlan:
        """Return a plan with L1 and the adapter; adapters that write files get a temporary folder for each server."""
        own = {"relative_tmp_dir": OWN_TMP} if self.adapter["type"] in _WRITE_FILES else {}
        return TierPlan(
            label=self.label(ctx),
            offload=Offload(l2_adapter={**own, **self.adapter}),
            facts={"storage": str(self.adapter["type"])},
            salt=salt_of(ctx.run_id),
        )

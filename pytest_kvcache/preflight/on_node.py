"""The preflight of a tier on a node of a cluster, called there by the node's agent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_kvcache import preflight
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine.environment import inspect
from pytest_kvcache.home import home
from pytest_kvcache.serving.tier import Tier, TierContext


def look(
    *, tier: Tier, profile: Profile, plan: Mapping[str, Any], engine: Path, environ: Mapping[str, str]
) -> list[str]:
    """Return why no server should be booted for the tier on this node, a line each.

    Args:
        tier: The tier.
        profile: Profile that is served.
        plan: Label and facts of the tier's plan, as the machine has them on which pytest runs.
        engine: Folder of the engine environment here.
        environ: Credentials for the storage.
    """
    own = home() / "storage"
    ctx = TierContext(
        profile=profile,
        run_id="preflight",
        scratch=own,
        storage_home=own,
        tool=inspect(engine).find,
        port=lambda: 0,
        environ={**os.environ, **environ},
    )
    if plan["facts"].get("stand_in") == "true":
        return []  # what stands in is the folder itself, which every node was asked for
    if reason := tier.unavailable(ctx):
        return [f"tier {tier.name} cannot run there: {reason}"]
    facts = tier.plan(ctx).facts
    differs = [
        f"{name} is {facts.get(name, 'missing')!r}, and {value!r} on the machine of pytest"
        for name, value in plan["facts"].items()
        if facts.get(name) != value
    ]
    return [*differs, *preflight.blocking(tier, ctx)]

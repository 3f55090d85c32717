"""Compare what a run of a profile on a tier uses of vLLM and LMCache with the versions of an engine."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine import floors
from pytest_kvcache.engine.floors import Floor, Without
from pytest_kvcache.serving.offload import Offload

_FS_TYPES = frozenset({"fs", "fs_native"})


def traits(profile: Profile, offload: Offload | None) -> frozenset[str]:
    """Return the words of `engine.floors` that are true of a run.

    Args:
        profile: Profile that is served.
        offload: What the tier adds, None for vLLM alone.
    """
    if offload is None:
        return frozenset()
    found = {floors.OFFLOAD, profile.lmcache_mode}
    kind = (offload.l2_adapter or {}).get("type")
    if kind in _FS_TYPES or "remote_storage_plugins" in offload.engine_config:
        found.add(floors.FS)
    if kind == "s3" or str(offload.engine_config.get("remote_url", "")).startswith("s3://"):
        found.add(floors.S3)
    return frozenset(found)


def refusals(versions: Mapping[str, str], profile: Profile, offload: Offload | None) -> list[Floor]:
    """Return the rows of the table that the engine lacks and the run cannot do without.

    Args:
        versions: Versions of the engine, by distribution name.
        profile: Profile that is served.
        offload: What the tier adds.
    """
    return floors.lacks(versions, traits(profile, offload), Without.REFUSED)


def losses(versions: Mapping[str, str], profile: Profile, offload: Offload | None, *, bench: bool = False) -> list[str]:
    """Return what a run will not be told because its engine is older, a line each.

    Args:
        versions: Versions of the engine, by distribution name.
        profile: Profile that is served.
        offload: What the tier adds.
        bench: Whether the run is `doctor --bench`.
    """
    words = traits(profile, offload) | ({floors.BENCH} if bench else set())
    found = floors.lacks(versions, words, Without.LESS)
    if floors.HIT_LEVELS in found and floors.HIT_KEYS in found:
        found.remove(floors.HIT_KEYS)  # the keys only refine the levels, which are missing
    return [f"{row.lacking(versions)}; lost: {row.lost}" for row in found]


def missing_features(rows: list[Floor], versions: Mapping[str, str]) -> tuple[str, str]:
    """Return what is missing in one line, and what to do about it.

    Args:
        rows: Rows of the table, one at least.
        versions: Versions of the engine, by distribution name.
    """
    missing = "; ".join(dict.fromkeys(row.lacking(versions) for row in rows))
    newest = {
        package: max((row.since for row in rows if row.package is package), key=lambda v: [*map(int, v.split("."))])
        for package in dict.fromkeys(row.package for row in rows)
    }
    return missing, "install " + " and ".join(f"{package} {since} or newer" for package, since in newest.items())

"""Find tier kinds: by name in the entry point group `pytest_kvcache.tiers`, by `module:Class` in a project's file."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from pydantic import BaseModel

from pytest_kvcache import project_code

GROUP = "pytest_kvcache.tiers"


@cache
def tier_kinds() -> dict[str, EntryPoint]:
    """Return the entry point of every tier kind that is installed, by the name that `kind =` takes."""
    return {point.name: point for point in entry_points(group=GROUP)}


def imported(kind: str, folder: Path | None) -> type[BaseModel]:
    """Return the class of a kind, that of an entry point or of a file in the project's folder.

    Args:
        kind: The entry point's name, or `module:Class`, as it stands in `kvcache.toml`.
        folder: Folder of that file, which is searched first for a module.

    Raises:
        ValueError: The class cannot be imported, or is no tier kind.
    """
    found = project_code.imported(kind, folder) if ":" in kind else project_code.loaded(tier_kinds()[kind])
    if not (isinstance(found, type) and issubclass(found, BaseModel) and hasattr(found, "plan")):
        raise ValueError(f"{kind!r} is no class derived from pytest_kvcache.TierModel")
    return found

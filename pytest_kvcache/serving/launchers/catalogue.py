"""Which launchers there are, and which one a boot takes; third parties register theirs as entry points."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from pytest_kvcache import project_code
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.engine.image import ImageEngine
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.launchers.base import Launch, Launcher

GROUP = "pytest_kvcache.launchers"


@cache
def launchers() -> dict[str, EntryPoint]:
    """Return the registered launchers by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def found(name: str, *, where: str, folder: Path | None) -> Callable[[Launch], Launcher]:
    """Return what makes a launcher.

    Args:
        name: Name of a registered launcher, or `MODULE:CLASS` of the project's own.
        where: The option or key that names it.
        folder: Folder of the project's `kvcache.toml`, None where there is none.

    Raises:
        ConfigError: There is none of this name, or it cannot be imported.
    """
    try:
        if ":" in name:
            own: Callable[[Launch], Launcher] = project_code.imported(name, folder)
            return own
        if name in launchers():
            registered: Callable[[Launch], Launcher] = project_code.loaded(launchers()[name])
            return registered
    except ValueError as error:
        raise ConfigError(str(error), where=where) from None
    known = ", ".join(sorted(launchers()))
    raise ConfigError(
        f"unknown launcher {name!r}; known: {known}",
        where=where,
        todo=f"a launcher of your own is `MODULE:CLASS`, or an entry point in the group {GROUP}",
    )


def chosen(name: str | None, engine: BaseEngine) -> str:
    """Return the launcher's name: the one that was asked for, else the one that fits the engine."""
    return name or ("docker" if isinstance(engine, ImageEngine) else "process")


def is_elsewhere(name: str) -> bool:
    """Return whether a launcher boots servers on other machines, so that this one's GPUs say nothing of a boot."""
    point = launchers().get(name)
    try:
        return point is not None and bool(getattr(project_code.loaded(point), "elsewhere", False))
    except ValueError:
        return False  # `make` says so


def make(name: str, launch: Launch, folder: Path | None = None) -> Launcher:
    """Return the launcher `name` for a boot.

    Args:
        name: Name of a registered launcher, or `MODULE:CLASS`.
        launch: The boot.
        folder: Folder of the project's `kvcache.toml`.

    Raises:
        ConfigError: There is none of this name, or it cannot be imported, or it does not fit the engine.
    """
    if name == "process" and isinstance(launch.engine, ImageEngine):
        raise ConfigError(
            f"launcher process starts programs of a folder, and the engine is an image: {launch.engine.where}",
            where="launcher",
            todo="leave the launcher out, or take docker",
        )
    return found(name, where="launcher", folder=folder)(launch)

"""Which launchers there are, and which one a boot takes; third parties register theirs as entry points."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.engine.image import ImageEngine
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.launchers.base import Launch, Launcher

GROUP = "pytest_kvcache.launchers"


@cache
def launchers() -> dict[str, EntryPoint]:
    """Return the registered launchers by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def check(name: str, *, where: str) -> None:
    """Check that a launcher is registered.

    Args:
        name: Name of the launcher.
        where: The option or key that names it.

    Raises:
        ConfigError: It is not; the message lists those that are.
    """
    if name not in launchers():
        known = ", ".join(sorted(launchers()))
        raise ConfigError(
            f"unknown launcher {name!r}; known: {known}",
            where=where,
            todo=f"a launcher of your own is an entry point in the group {GROUP}",
        )


def chosen(name: str | None, engine: BaseEngine) -> str:
    """Return the launcher's name: the one that was asked for, else the one that fits the engine."""
    return name or ("docker" if isinstance(engine, ImageEngine) else "process")


def make(name: str, launch: Launch) -> Launcher:
    """Return the launcher `name` for a boot.

    Raises:
        ConfigError: There is none of this name, or it cannot be imported, or it does not fit the engine.
    """
    check(name, where="launcher")
    if name == "process" and isinstance(launch.engine, ImageEngine):
        raise ConfigError(
            f"launcher process starts programs of a folder, and the engine is an image: {launch.engine.where}",
            where="launcher",
            todo="leave the launcher out, or take docker",
        )
    try:
        factory: Callable[[Launch], Launcher] = launchers()[name].load()
    except ImportError as error:
        raise ConfigError(f"launcher {name!r} cannot be imported: {error}", where="launcher") from None
    return factory(launch)

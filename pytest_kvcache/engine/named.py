"""The engine that an option names: a folder, or `image:…`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine import environment, setup
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.engine.container import BindMount
from pytest_kvcache.engine.image import PREFIX, inspect_image
from pytest_kvcache.home import home


def name_of(asked: str | None, profile: Profile) -> str | None:
    """Return the name of a profile's engine: the one that was asked for, else the profile's image, else None."""
    return asked or (f"{PREFIX}{profile.image}" if profile.image else None)


def engine_named(name: str, mounts: Sequence[BindMount] = ()) -> BaseEngine:
    """Return the engine called `name`.

    Args:
        name: A folder with `bin/`, or `image:REPOSITORY[:TAG|@DIGEST]`.
        mounts: What containers of an image get from this machine.

    Raises:
        ConfigError: The image or the daemon cannot be used.
        SetupError: The engine has no vLLM, or its Python does not run.
    """
    if name.startswith(PREFIX):
        return inspect_image(name.removeprefix(PREFIX), mounts, setup.installed(home()))
    return environment.inspect(Path(name))

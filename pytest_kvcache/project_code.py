"""Objects that other people's code defines: a project's own files (`MODULE:NAME`), and entry points of packages."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest


def imported(named: str, folder: Path | None) -> Any:
    """Return the object that `MODULE:NAME` names, found in the project's folder or among the installed packages.

    Args:
        named: `MODULE:NAME`, as it stands in `kvcache.toml`.
        folder: Folder of that file, which is searched first.

    Raises:
        ValueError: The object cannot be imported.
    """
    module, _, name = named.partition(":")
    path = [] if folder is None else [str(folder)]
    sys.path[:0] = path
    importlib.invalidate_caches()
    try:
        return _told(named, lambda: getattr(importlib.import_module(module), name))
    finally:
        for each in path:
            sys.path.remove(each)


def loaded(point: EntryPoint) -> Any:
    """Return the object that a package has registered as an entry point.

    Raises:
        ValueError: The object cannot be imported.
    """
    return _told(point.value, point.load)


def _told(named: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    # The code may raise anything. A script ends by `sys.exit`, and a module that is also a test may skip itself.
    except (Exception, SystemExit, pytest.skip.Exception) as error:
        raise ValueError(f"{named!r} cannot be imported: {type(error).__name__}: {error}") from error

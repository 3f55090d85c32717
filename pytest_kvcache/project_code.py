"""Objects that a project's own files define, named `MODULE:NAME` in `kvcache.toml`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


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
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # the file may raise anything
        raise ValueError(f"{named!r} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        for each in path:
            sys.path.remove(each)

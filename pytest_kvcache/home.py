"""Where the plugin keeps what outlives a run: engine environments, models, journals, port leases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "PYTEST_KVCACHE_HOME"


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the plugin's folder: $PYTEST_KVCACHE_HOME, else `pytest-kvcache` in the XDG cache folder."""
    if environ.get(VARIABLE):
        return Path(environ[VARIABLE]).expanduser().absolute()
    cache = environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "pytest-kvcache"

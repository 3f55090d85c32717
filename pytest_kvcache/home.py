"""The folder for everything that outlives a run: engine environments, models, journals, port leases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.paths import expanded

VARIABLE = "PYTEST_KVCACHE_HOME"


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the plugin's folder: $PYTEST_KVCACHE_HOME, else `pytest-kvcache` in the XDG cache folder.

    Raises:
        ConfigError: The value of one of these environment variables is no path.
    """
    for variable, below in ((VARIABLE, "."), ("XDG_CACHE_HOME", "pytest-kvcache")):
        if environ.get(variable):
            try:
                return (Path(expanded(environ[variable], environ)) / below).absolute()
            except ValueError as error:
                raise ConfigError(str(error), where=variable) from None
    return Path.home() / ".cache" / "pytest-kvcache"

"""Fixtures of tests with real components."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_kvcache.engine import setup
from pytest_kvcache.home import home

# Taken when this file is imported: later, a test may have moved the plugin's home for its own purposes.
_HOME = home()


@pytest.fixture(scope="session")
def real_engine() -> Path:
    """The engine environment that `make test` has made."""
    engine = setup.installed(_HOME)
    if engine is None:
        pytest.fail("the engine environment is missing: run `make setup`", pytrace=False)
    return engine.path

"""What the tests of nodes have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_kvcache.runs.session import RunSession


@pytest.fixture
def run(kvcache_home: Path, tmp_path: Path) -> Iterator[RunSession]:
    """A run."""
    made = RunSession(kvcache_home, tmp_path / "runs", print)
    yield made
    made.close()

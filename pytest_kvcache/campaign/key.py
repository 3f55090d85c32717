"""Where a session keeps its state: a key of `config.stash`, light enough to be known before anything is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_kvcache.campaign.state import PerfState

KEY: pytest.StashKey[PerfState] = pytest.StashKey()

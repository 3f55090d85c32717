"""The perf test to copy into a project of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_kvcache.perf import BaselineCheck, MultiRoundQa

pytestmark = pytest.mark.perf


def test_multi_round_qa(kv_context: int, multi_round_qa: MultiRoundQa, kv_baseline: BaselineCheck) -> None:
    """Each tier reaches first tokens and throughput as fast as its baseline, at every context length."""
    result = multi_round_qa(context_tokens=kv_context)
    kv_baseline.check(result)

"""The perf test to copy into a project of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_kvcache import AnyGate, BaselineCheck, MeasureTier

pytestmark = pytest.mark.perf


def test_multi_round_qa(
    kv_context: int, kv_gate: AnyGate, multi_round_qa: MeasureTier, kv_baseline: BaselineCheck
) -> None:
    """Each tier is as good as its baseline, at every context length, in every metric that is judged."""
    result = multi_round_qa(context_tokens=kv_context)
    kv_baseline.check(result, kv_gate)

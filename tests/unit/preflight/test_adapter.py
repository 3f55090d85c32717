"""What `lmcache bench l2` printed (LMCache 0.5.6), read by the preflight."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_kvcache.preflight import adapter

DATA = Path(__file__).parents[1] / "data" / "bench"


def test_a_folder_that_works() -> None:
    """Speed and latency of each step are shown, and that what was loaded is what was stored."""
    found = adapter.judge(0, (DATA / "fs.out").read_text(), "")
    assert found.status == "pass"
    assert "16 objects of 512 KiB, verified: store " in found.found
    assert "load " in found.found


def test_a_folder_that_is_full() -> None:
    """Objects that were not stored are counted, for LMCache itself goes on."""
    found = adapter.judge(1, (DATA / "full.out").read_text(), "")
    assert found.status == "fail"
    assert "Store 0 of 32" in found.found


def test_data_that_came_back_changed() -> None:
    """Where every step succeeded and the bytes differ, the storage is not to be trusted."""
    text = (DATA / "fs.out").read_text().replace("All 16 keys data verified OK", "Key 3: MISMATCH")
    found = adapter.judge(1, text, "")
    assert (found.status, found.found) == ("fail", "what was stored is not what was loaded")


@pytest.mark.parametrize("errors", ["PermissionError: [Errno 13] refused\n", ""])
def test_a_program_that_does_not_get_that_far(errors: str) -> None:
    """Without a result the last line that speaks of a failure is shown, or that there was none."""
    found = adapter.judge(1, "[Init] Creating adapter...\n", errors)
    assert found.status == "fail"
    assert found.found == (errors.strip() or "lmcache bench l2 failed")

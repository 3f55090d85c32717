"""What is told of sessions on slow links."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.pnfs.slow import Ran, faults, read, table
from pytest_kvcache.errors import ResultsError


def test_a_link_that_is_slow_is_explained_and_one_that_changes_tokens_is_a_fault() -> None:
    """Each link is held against the one as it is; a gate that does not pass is named."""
    sessions = [
        Ran("none", "recorded: no baseline", {"part_ttft_s": 0.7}),
        Ran("10 ms of delay", "pass: 31,052 tokens as in the baseline", {"part_ttft_s": 1.7}),
        Ran("1 % of loss", "regressed: from L2 44 -> 12", {}),
    ]
    (_, _, none, slow, lossy) = table(sessions)
    assert none == "| none | recorded: no baseline | - |"
    assert slow.startswith("| 10 ms of delay | pass: 31,052 tokens as in the baseline | mean TTFT +143%: ")
    assert lossy == "| 1 % of loss | regressed: from L2 44 -> 12 | - |"
    assert faults(sessions) == ["1 % of loss"]


@pytest.mark.parametrize("said", [["pass: as before"], []], ids=["gate", "no gate"])
def test_a_session_is_read_from_its_folder(tmp_path: Path, said: list[str]) -> None:
    """What the gate says comes of the verdicts, where there is none why; figures come of the load's own file."""
    with pytest.raises(ResultsError, match="no verdict, or no load"):
        read(tmp_path, "none")
    load = tmp_path / "run" / "pnfs-lab" / "boot-1" / "context-3500"
    load.mkdir(parents=True)
    (load / "run.json").write_text(json.dumps({"estimates": {"part_ttft_s": 1.0}}))
    cells = [{"declared": said, "reasons": ["invalid: timed out"]}]
    (tmp_path / "run" / "verdicts.json").write_text(json.dumps({"cells": cells}))
    expected = "pass: as before" if said else "invalid: timed out"
    assert read(tmp_path, "none") == Ran("none", expected, {"part_ttft_s": 1.0})

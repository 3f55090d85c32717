"""Files of schema 2 are carried over from the requests that they keep, or refused with what helps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.baselines import files, older, store
from pytest_kvcache.cli import main
from pytest_kvcache.verdict.cells import SCHEMA, requests_path
from pytest_kvcache.verdict.rounds import judged_figures
from tests.unit.baselines.test_store import ROWS, recorded, tree
from tests.unit.verdict.make import CELL


def old(root: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    """Write three boots as schema 2 had them, changed by `change`, and return the JSON file."""
    store.write_all(root, [recorded()])
    path = CELL.path(root)
    data = json.loads(path.read_text())
    data["schema_version"] = 2
    for each in data["boots"]:
        each["figures"]["ttft_session_s"] = 0.123
        del each["figures"]["ttft_geomean_s"]
    change(data)
    path.write_text(json.dumps(data))
    return path


def migrate(root: Path, *more: str) -> int:
    """Run the command."""
    return main(["baselines", "--kv-baselines", str(root), "migrate", *more])


def test_figures_come_from_the_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --yes the file is of this schema, TTFT is that of its requests, and all else is as it was."""
    path = old(tmp_path)
    assert migrate(tmp_path, "--yes") == 0
    assert "1 carried over; 0 cannot be" in capsys.readouterr().out
    now = store.read(tmp_path, CELL)
    assert now is not None
    assert now.schema_version == SCHEMA
    for each, rows in zip(now.boots, ROWS, strict=True):
        assert each.figures["ttft_geomean_s"] == pytest.approx(judged_figures(rows)["ttft_geomean_s"], rel=1e-4)
        assert "ttft_session_s" not in each.figures
    before, after = recorded().new, json.loads(path.read_text())
    assert (after["comparability"], after["workload"]) == (before.comparability, before.workload)
    assert len(store.read_requests(tmp_path, now)) == sum(map(len, ROWS))
    assert migrate(tmp_path) == 0


def test_nothing_is_written_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --yes the command says what it would do, and changes nothing."""
    old(tmp_path)
    before = tree(tmp_path)
    assert migrate(tmp_path) == 1
    assert "1 can be carried over: --yes writes them" in capsys.readouterr().out
    assert tree(tmp_path) == before


def without_requests(data: dict[str, Any]) -> None:
    """Take the reference to the requests away."""
    data["requests"] = None


def more_boots(data: dict[str, Any]) -> None:
    """Add a boot that has no requests."""
    data["boots"].append(data["boots"][0])


def not_a_list(data: dict[str, Any]) -> None:
    """Put something else where boots should be."""
    data["boots"] = {"0": "x"}


def of_elsewhere(data: dict[str, Any]) -> None:
    """Say that the file is another cell's."""
    data["cell"]["tier"] = "cpu"


def of_nowhere(data: dict[str, Any]) -> None:
    """Name a cell that leads out of the folder."""
    data["cell"]["tier"] = "../../x"


@pytest.mark.parametrize("change", [without_requests, more_boots, not_a_list, of_elsewhere, of_nowhere])
def test_what_cannot_be_carried_over_says_what_records_it_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object]
) -> None:
    """A damaged or hostile file is left as it is, with the reason and the command."""
    old(tmp_path, change)
    before = tree(tmp_path)
    assert migrate(tmp_path, "--yes") == 1
    out = capsys.readouterr().out
    assert "schema 2: " in out
    assert "-> pytest -m perf --tier pnfs --kv-profile p --update-baselines" in out
    assert tree(tmp_path) == before


def test_requests_of_another_file_are_refused(tmp_path: Path) -> None:
    """A table that is not the one that the file names gives no figures."""
    path = old(tmp_path)
    requests_path(path).write_bytes(b"PAR1" + requests_path(path).read_bytes())
    (found,) = older.migrations(tmp_path, files.scan(tmp_path))
    assert found.write is None
    assert "SHA-256 differs" in found.reason

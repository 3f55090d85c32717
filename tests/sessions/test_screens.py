"""Pictures of a session for the docs: from a stub session, and labelled so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import screens
from tests.unit.test_screens import shown


@pytest.mark.usefixtures("kvcache_home")
def test_a_session_is_drawn_under_way_and_at_its_end(tmp_path: Path, port_leases: Path) -> None:
    """The first picture has the line of progress, the last the table of cells; both say that stubs answered."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "ports").symlink_to(port_leases)
    screens.write_project(tmp_path, duration_s=0.6)
    found = screens.session(tmp_path, 80, tiers=("gpu",), when="gpu boot-1")
    assert found.code == 0, shown(found.end)
    assert found.progress is not None
    assert "gpu boot-1" in shown(found.progress)
    assert "left" in shown(found.progress)
    end = shown(found.end)
    assert "KV from" in end
    assert "recorded 1" in end
    assert "gpu boot-1" not in end
    assert max(map(len, end.splitlines())) <= 80
    for svg in (found.progress, found.end):
        assert "no&#160;measurement" in svg or "no measurement" in svg

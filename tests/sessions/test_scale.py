"""`pytest-kvcache scale` at its whole work, on sizes that are small."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_kvcache import cli
from pytest_kvcache.scaling import growth

pytestmark = pytest.mark.long


def test_a_small_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each size has its row with what was measured; what is scaled is marked, and what is assumed is said."""
    effort = growth.Effort(rate=5, seconds=2, sessions=10)
    monkeypatch.setattr(growth, "Effort", lambda rows: growth_effort(effort, rows))
    monkeypatch.setattr("pytest_kvcache.report.vega.javascript", lambda: "window.vegaEmbed = null;")
    output = tmp_path / "scale.md"
    sizes = ("--size", "2:3", "--size", "3:60")
    code = cli.main(["scale", *sizes, "--context", "60", "--time", "30", "--rows", "100", "--output", str(output)])
    told = capsys.readouterr().out
    assert code == 0, told
    text = output.read_text()
    first, second = (line for line in text.splitlines() if line.startswith(("| 2 |", "| 3 |")))
    assert "| 12 |" in first
    assert "~" not in first
    assert "| 240 |" in second
    assert "~" in second
    assert "(0 failed" in text
    assert text.count("assumed") >= 2
    assert "synthetic" in text


def growth_effort(effort: growth.Effort, rows: int) -> growth.Effort:
    """Return the effort with another number of rows."""
    return type(effort)(rows, effort.script_bytes, effort.rate, effort.seconds, effort.sessions)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--size", "2"), "is no SERVERS:USERS"),
        (("--size", "0:15"), "must be from 1"),
        (("--size", "2:x"), "is no SERVERS:USERS"),
        (("--time", "0"), "--time"),
        (("--context", "0"), "--context"),
        (("--rows", "1"), "--rows"),
        (("--node-processors", "0"), "--node-processors"),
    ],
)
def test_what_is_no_size(flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A size that is none is refused before anything is measured."""
    assert cli.main(["scale", *flags]) == 1
    assert words in capsys.readouterr().err

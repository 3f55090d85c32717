"""Pictures of a terminal: what a command drew, in its colours and at its width, with nothing from elsewhere."""

from __future__ import annotations

import os
import re
import sys
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pyte
import pytest
from rich.cells import cell_len

from docgen import screens

#: Width of a cell in the pictures.
CELL = 12.2
#: Draws one line anew, as a progress line does, then leaves coloured words, a wide character and signs of markup.
PROGRAM = r"""
import os, sys
assert sys.stdout.isatty() and sys.stdin.isatty()
print(os.get_terminal_size().columns, os.environ.get("CI"), flush=True)
# Written at once: what was on the screen for a moment was there.
print("".join(f"\r\x1b[2Kpart {at} of 3" for at in range(3)), end="", flush=True)
print("\r\x1b[2K\x1b[1;31mregressed\x1b[0m \x1b[38;5;208morange\x1b[0m <b>&amp; 漢 ende", flush=True)
sys.exit(3)
"""


def shown(svg: str) -> str:
    """Return the text of a picture, lines as they were."""
    ElementTree.fromstring(svg)  # noqa: S314 - our own
    rows: dict[float, str] = {}
    for x, y, text in re.findall(r'<text class="[^"]*" x="([^"]*)" y="([^"]*)"[^>]*>([^<]*)</text>', svg):
        before = rows.get(float(y), "")
        column = round(float(x) / CELL)  # spaces are not drawn where nothing beside them looks like them
        rows[float(y)] = before + " " * (column - cell_len(before)) + unescape(text).replace("\xa0", " ")
    return "\n".join(rows[y].rstrip() for y in sorted(rows))


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_command_sees_a_terminal_and_is_drawn_on_the_way_and_at_its_end(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The width is the terminal's, CI is not told; a line that was drawn over is in the first picture alone."""
    monkeypatch.setenv("CI", "true")
    command = [sys.executable, "-c", PROGRAM]
    found = screens.capture(command, width=width, when="part 1 of 3", title="a <title>", environ=os.environ)
    assert found.code == 3
    assert found.progress is not None
    assert f"{width} None" in shown(found.progress)
    assert "part 1 of 3" in shown(found.progress)
    assert "part" not in shown(found.end)
    assert "regressed orange <b>&amp; 漢 ende" in shown(found.end)
    assert "a &lt;title&gt;" in found.end or "a&#160;&lt;title&gt;" in found.end


def test_colours_are_kept_and_nothing_is_loaded() -> None:
    """Named, numbered and bold colours are in the picture's style; no address of another host is."""
    screen = pyte.Screen(30, 3)
    pyte.Stream(screen).feed("\x1b[1;31mred\x1b[0m \x1b[33mbrown\x1b[0m \x1b[92mlight\x1b[0m \x1b[38;5;208mx\x1b[0m")
    svg = screens.picture(screen, "t")
    assert "#ff8700" in svg
    assert "font-weight: bold" in svg
    assert "font-face" not in svg
    assert not re.search(r"(?:href|src)=|url\((?!#)", svg)
    assert set(re.findall(r"https?://[^\s\"']+", svg)) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    """Files are named by name and width; the exit code is the command's."""
    args = ["--width", "80", "--to", str(tmp_path / "out"), "--name", "p", "--when", "part 2", "--"]
    assert screens.main([*args, sys.executable, "-c", PROGRAM]) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p-80-end.svg", "p-80-progress.svg"]


def test_what_never_came_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without the text that was waited for there is the last picture alone, and the command fails."""
    args = ["--width", "80", "--to", str(tmp_path), "--when", "never", "--", sys.executable, "-c", "print(1)"]
    assert screens.main(args) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["screen-80-end.svg"]
    assert "'never' was never on the screen" in capfd.readouterr().err


def test_a_program_that_is_not_there_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is an error of one line, and nothing is written."""
    assert screens.main(["--width", "80", "--to", str(tmp_path / "o"), "--", str(tmp_path / "no")]) == 1
    assert capfd.readouterr().err == f"screens: {tmp_path / 'no'}: No such file or directory\n"
    assert not (tmp_path / "o").exists()

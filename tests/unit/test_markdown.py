"""Markdown, Mermaid and workflow commands of what was measured: whatever a name holds, it stays a name."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pytest_kvcache.report import markdown, step_summary
from pytest_kvcache.report.workflow_commands import MOST_A_LEVEL, Annotation, limited

HOSTILE = [
    "pnfs",
    "a|b",
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<!-- comment",
    "</td></tr></table>",
    "</details>",
    "&lt;b&gt; &amp; &#60;",
    "[text](javascript:alert(1))",
    "![image](https://example.org/x.png)",
    "https://example.org/?a=b",
    "www.example.org",
    "WWW.example.org",
    "@everyone and @org/team",
    "#12 and GH-12",
    ":rocket:",
    "**bold** __bold__ ~~gone~~",
    "`code` ``` fence",
    "$x^2$ and $$y$$",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "1) item",
    "> quote",
    "=== and ---",
    "back\\slash \\| end\\",
    "two\nlines\r\nthree\x0bfour\u2028five",
    "::error file=x,line=1::nothing",
    "##[error]nothing",
    "%0A::warning::nothing",
    "escape \x1b[31mred\x1b[0m \x00 \x07",
    "turned \u202eround\u202c zero\u200bwidth",
    "lone \udcff byte",
    "日本語 ünï",
    '"]\nline "x" [1]',
    "```\n```mermaid\ngraph TD",
    "%%{init: {}}%%",
    "",
    " ",
]


class _Seen(HTMLParser):
    """The tags of a page and the text of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.tags.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in {"td", "th"}:
            self.cells[-1] += data.strip("\n")


def rendered(lines: list[str]) -> _Seen:
    """Return what a page of these lines shows, with tables, links and strikethrough as GitHub has them."""
    seen = _Seen()
    text = "\n".join(lines).encode("utf-8", "backslashreplace").decode()
    seen.feed(MarkdownIt("gfm-like", {"html": True}).render(text))
    return seen


def told(text: str) -> str:
    """Return what a reader is to see of a text: one line, with escapes for what cannot be seen."""
    line = " ".join(text.split()).replace("@", "@\u200b")
    return "".join(
        each if each.isprintable() or (each == "\u200b" and "@" in text) else "\\" + _escape(each) for each in line
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")[1:]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_table_is_shown_as_it_is(name: str) -> None:
    """No name adds a cell, a tag, a link or a line; a reader sees its characters."""
    seen = rendered(markdown.table([{"tier": name, "speed": "3"}, {"tier": "cpu", "speed": "4"}]))
    assert set(seen.tags) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert seen.cells[1:] == ["speed", told(name).strip() or "-", "3", "cpu", "4"]


@given(st.text(st.characters(exclude_characters="\u200b"), max_size=40))
def test_any_text_in_a_table_is_shown_as_it_is(name: str) -> None:
    """The same holds for any text."""
    seen = rendered(markdown.table([{"tier": name, "speed": "3"}]))
    assert set(seen.tags) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert [cell.strip() for cell in seen.cells[1:]] == ["speed", told(name).strip() or "-", "3"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_list_is_shown_as_it_is(name: str) -> None:
    """A name at the beginning of an entry makes no list, heading, quote or link of it."""
    assert set(rendered([f"- {markdown.escaped(name)}"]).tags) <= {"ul", "li"}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_ends_a_code_block(name: str) -> None:
    """A code block holds what it was given, whatever fences are in it."""
    lines = markdown.fenced(f"before\n{name}\nafter")
    assert rendered([*lines, "", "end"]).tags == ["pre", "code", "p"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_chart_stays_between_its_quotes(name: str) -> None:
    """The chart's block has the lines that were drawn and no others, and each of its labels one pair of quotes."""
    block, lacking = markdown.xychart(name, unit="s", lines={name: {1: 2.0, 3: 4.0}, "cpu": {1: 1.0, 3: 1.5}})
    inner = block[1 : block.index("```", 1)]
    assert lacking == []
    assert [line.split()[0] for line in inner[inner.index("xychart-beta") + 1 :]] == [
        "title", "x-axis", "y-axis", "line", "line",
    ]  # fmt: skip
    assert all("\n" not in line for line in block)
    assert re.fullmatch(r'  line "[A-Za-z0-9_ .,()/:+-]*" \[2, 4\]', inner[-2])


def test_a_chart_of_one_context_has_a_bar_a_tier() -> None:
    """With one context there is no line to draw: bars stand side by side."""
    block, _ = markdown.xychart("m", unit="s", lines={"gpu": {1000: 0.25}, "cpu": {1000: 0.125}})
    assert '  x-axis "at a context of 1000 tokens" ["gpu", "cpu"]' in block
    assert "  bar [0.25, 0.125]" in block


def test_what_a_chart_lacks_is_told() -> None:
    """A tier without a value at some context, and tiers beyond the colours, are named and not drawn."""
    whole = {f"t{n}": {1: 1.0, 2: 2.0} for n in range(9)}
    block, lacking = markdown.xychart("m", unit="s", lines={"gpu": {1: 1.0, 2: float("nan")}, **whole})
    assert sum(line.startswith("  line") for line in block) == 8
    assert [line.split(": ")[1] for line in lacking] == ["gpu", "t8"]
    assert markdown.xychart("m", unit="s", lines={})[0] == []


@given(st.floats(min_value=0, max_value=1e300))
def test_numbers_of_a_chart_have_no_exponent(value: float) -> None:
    """Mermaid reads digits and a point only."""
    block, _ = markdown.xychart("m", unit="s", lines={"a": {1: value, 2: 0.0}})
    assert re.fullmatch(r'  line "a" \[\d+(\.\d+)?, 0\]', next(line for line in block if line.startswith("  line")))


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "░░░░░░░░ 0%"), (0.5, "████░░░░ 50%"), (1.0, "████████ 100%"), (1.2, "████████ 120%"),
     (None, "-"), (float("nan"), "-")],
)  # fmt: skip
def test_a_share_is_a_bar(share: float | None, shown: str) -> None:
    """A bar has eight cells, and a share that is not known has none."""
    assert markdown.bar(share) == shown


def read_command(line: str) -> tuple[str, dict[str, str], str]:
    """Return level, properties and message of a command as the runner reads it."""
    found = re.fullmatch(r"::(\w+) ([^\r\n]*?)::([^\r\n]*)", line)
    assert found is not None

    def plain(text: str, *, of_property: bool) -> str:
        for coded, character in (("%0D", "\r"), ("%0A", "\n")):
            text = text.replace(coded, character)
        if of_property:
            text = text.replace("%3A", ":").replace("%2C", ",")
        return text.replace("%25", "%")

    properties = dict(part.split("=", 1) for part in found[2].split(","))
    return found[1], {k: plain(v, of_property=True) for k, v in properties.items()}, plain(found[3], of_property=False)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name and all(c.isprintable() for c in name)])
def test_a_name_in_an_annotation_is_one_property(name: str) -> None:
    """The runner reads back title, file and message as they were, and no further property or command."""
    line = Annotation("error", name, f"{name}\n{name}", file=f"tests/{name}.py", line=7).command
    assert read_command(line) == (
        "error",
        {"file": f"tests/{name}.py", "line": "7", "title": name},
        f"{name}\n{name}",
    )


@given(st.text(), st.text())
def test_any_annotation_is_one_line(title: str, message: str) -> None:
    """No text makes a second line of the log, which could be another command, or steers a terminal."""
    line = Annotation("warning", title, message).command
    assert line.splitlines() == [line]
    assert line.isprintable()


def test_long_annotations_are_cut() -> None:
    """Titles and messages beyond what the service takes end with an ellipsis."""
    _, properties, message = read_command(Annotation("error", "t" * 999, "m" * 99_999).command)
    assert (properties["title"][-1], message[-1]) == ("…", "…")
    assert len(message) <= 4000


def test_a_step_has_ten_annotations_of_each_level() -> None:
    """What is beyond them is counted in the last, and errors come first."""
    many = [Annotation(level, f"{level} {n}", "") for n in range(15) for level in ("warning", "error")]
    kept = limited(many)
    assert [each.level for each in kept] == ["error"] * MOST_A_LEVEL + ["warning"] * MOST_A_LEVEL
    assert (kept[0].title, kept[9].title, kept[10].title) == ("error 0", "6 more", "warning 0")
    assert limited(many[:20]) == sorted(many[:20], key=lambda each: each.level)


def test_a_summary_is_appended_as_far_as_there_is_room(tmp_path: Path) -> None:
    """Earlier text of the step stays; the file never exceeds what the service shows, and says what is missing."""
    path = tmp_path / "summary.md"
    path.write_bytes(b"x" * (step_summary.MOST_BYTES - 600))
    table = [f"| row {n:4} |" for n in range(1000)]
    step_summary.append(
        path,
        [step_summary.Block(["head"]), step_summary.Block(["whole"] * 999), step_summary.Block(table, cut_at=2)],
    )
    left = path.read_bytes()[step_summary.MOST_BYTES - 600 :].decode()
    assert len(left) <= 600
    assert left.startswith("\nhead\n\n| row    0 |\n| row    1 |\n")
    assert "whole" not in left
    assert left.rstrip().endswith("among the artefacts of the run.")


@pytest.mark.parametrize("room", range(0, 400, 7))
def test_a_summary_never_exceeds_its_room(room: int) -> None:
    """Whatever room there is, the bytes fit, and a table that is cut has its head and a row."""
    blocks = [step_summary.Block(["é" * 20]), step_summary.Block(["| a |", "| - |", *["| é |"] * 50], cut_at=2)]
    text = step_summary.fitting(blocks, room)
    assert len(text) <= room
    if b"| - |" in text:
        assert "| é |".encode() in text


@pytest.mark.parametrize("kind", ["folder", "no folder", "pipe"])
def test_a_summary_that_cannot_be_written_is_an_error(tmp_path: Path, kind: str) -> None:
    """A folder or a pipe in its place, or no folder to put it in, is an error of the system with the path."""
    os.mkfifo(tmp_path / "pipe")  # of which nobody reads
    path = {
        "folder": tmp_path,
        "no folder": tmp_path / "none" / "summary.md",
        "pipe": tmp_path / "pipe",
    }[kind]
    with pytest.raises(OSError, match=re.escape(str(path))):
        step_summary.append(path, [step_summary.Block(["x"])])

"""The HTML report without a browser: its structure, what names cannot do to it, and its size."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.load import records
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.report import series, vega
from pytest_kvcache.report.html import document
from pytest_kvcache.report.html.loads import read_loads
from tests.unit.test_report import left

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "a\u2028b\u2029c",
    "\x00\x07\x1b[31m",
    "\u202egnp.exe",
    "{{ 7 * 7 }}{% raw %}",
    "<!--<script>",
    "&lt;&#39;",
)


class Page(HTMLParser):
    """The elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._script: list[str] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep it."""
        self.tags.append((tag, dict(attrs)))
        self._script = [] if tag == "script" else None

    def handle_data(self, data: str) -> None:
        """Keep the text of a script."""
        if self._script is not None:
            self._script.append(data)

    def handle_endtag(self, tag: str) -> None:
        """End a script."""
        if tag == "script" and self._script is not None:
            self.scripts.append("".join(self._script))
            self._script = None


def requests(path: Path, count: int, *, server: str = "vllm-0", error: str = "") -> None:
    """Write the rows of a load of 15 users."""
    rows = []
    for n in range(count):
        start, failed = n * 0.5, bool(error) and n % 7 == 0
        rows.append(
            RequestRecord(
                user=n % 15,
                round=n // 15 + 1,
                intended_start_s=start,
                actual_start_s=start,
                first_token_s=None if failed else start + 0.123456,
                last_token_s=None if failed else start + 2.34567,
                prompt_tokens=None if failed else 20000 + n,
                generated_tokens=None if failed else 100,
                cached_tokens=None if failed else 256 * (n % 70),
                status=records.HTTP_ERROR if failed else records.OK,
                error=error if failed else "",
                server=server,
                residual_s=0.004,
            )
        )
    records.save(rows, path.with_name("requests.parquet"))


def page_of(folder: Path, **more: Any) -> str:
    """Return the page of a run."""
    path = document.write(series.read([folder]), folder / "r.html", still=False, **more)
    return path.read_text(encoding="utf-8")


@pytest.fixture
def javascript(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short script in place of Vega's, which takes seconds to make and which no test here runs."""
    monkeypatch.setattr(vega, "javascript", lambda: "window.vegaEmbed = null;")


def make_run(folder: Path) -> Path:
    """Leave a run of two tiers at two contexts, with rows and proof, and return its folder."""
    for tier, speeds in {"gpu": (3000.0, 1000.0), "pnfs": (3100.0, 3012.0)}.items():
        for context, speed in zip((1000, 9000), speeds, strict=True):
            path = left(folder, tier, context, speed)
            tokens = {"computed": 600.0, "device": 100.0, "l2": 300.0 if tier == "pnfs" else 0.0}
            proof = {"servers": {"vllm-0": tokens}, "expected": {"vllm-0": tokens}}
            estimates = {"part_prefill_s": 0.1, "part_queue_s": 0.02}
            facts = json.loads(path.read_text())
            facts |= {"proof": proof, "versions": {"vllm": "1"}, "commands": {"vllm-0": ["vllm", "serve", "a b"]}}
            facts["estimates"] |= estimates
            path.write_text(json.dumps(facts))
            requests(path, 60)
    return folder


@pytest.fixture
def run(tmp_path: Path, javascript: None) -> Path:
    """A run of two tiers at two contexts."""
    return make_run(tmp_path / "run-1")


def test_every_section_is_there_with_a_table_beside_each_chart(run: Path) -> None:
    """Charts have a label for screen readers; sections have headings that the navigation leads to."""
    page = Page(page_of(run))
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = {str(attrs["href"])[1:] for tag, attrs in page.tags if tag == "a"}
    assert {"main", "chart", "verdicts", "ttft", "timeline", "ledger", "breakdown", "environment", "commands"} <= links
    assert links <= ids
    charts = [attrs for tag, attrs in page.tags if tag == "div" and attrs.get("class") == "chart"]
    assert len(charts) >= 8
    assert all(each["role"] == "img" and each["aria-label"] for each in charts)
    assert sum(tag == "table" for tag, _ in page.tags) >= len(charts) - 3
    assert all(attrs.get("scope") == "col" for tag, attrs in page.tags if tag == "th")


def test_the_page_needs_no_network(run: Path) -> None:
    """Nothing in it is loaded from elsewhere, and its policy would not let anything be."""
    page = Page(page_of(run))
    outside = [
        a for tag, a in page.tags if any(str(a.get(k) or "").startswith(("http", "//")) for k in ("src", "href"))
    ]
    assert outside == []
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)


def test_each_table_names_the_files_of_its_numbers(run: Path) -> None:
    """A row has a column with its file, or the table says where all of it is from."""
    measured = series.read([run])
    loads, _ = read_loads(measured)
    found = document.sections(measured, loads, against=("gpu",), reference=True, still=False)
    tables = [t for s in found for t in (*s.tables, *(f.table for f in s.figures if f.table))]
    assert tables
    assert all("file" in table.columns or table.source for table in tables)
    files = {row[table.columns.index("file")] for table in tables if "file" in table.columns for row in table.rows}
    assert all((run / name).is_file() for each in files for name in each.split(", "))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_stays_text(run: Path, name: str) -> None:
    """Names of tiers, servers, commands and errors open no element, no attribute and no script."""
    plain = Page(page_of(run))
    for path in run.rglob("run.json"):
        facts = json.loads(path.read_text())
        facts |= {"label": name, "suspicions": [name], "versions": {name: name}, "commands": {name: [name]}}
        facts["proof"]["servers"] = {name: {"computed": 5.0}}
        path.write_text(json.dumps(facts))
        requests(path, 60, server=name, error=f"x{name}")
    text = page_of(run, left_out=[name])
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert len(page.scripts) == len(plain.scripts) == 3
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    data = json.loads(page.scripts[0])
    assert set(data) >= {"ttft-ecdf", "timeline-requests"}
    assert not set(text) & set("\x00\x07\x1b\u202e\u2028\u2029")


def test_twenty_minutes_at_two_requests_a_second_stay_below_3_mb(tmp_path: Path, run: Path) -> None:
    """2,400 requests in each of four cells, with the script of the charts (0.9 MB) added to what is written here."""
    for path in run.rglob("run.json"):
        requests(path, 2400)
    size = len(page_of(run).encode())
    assert size + 900_000 < 3_000_000


def test_what_is_missing_or_damaged_is_told(run: Path) -> None:
    """Rows that cannot be read leave the rest of the page, and a line with the file."""
    broken = next(run.rglob("requests.parquet"))
    broken.write_bytes(b"PAR1")
    text = page_of(run)
    assert "requests cannot be read" in text
    assert "Speed, TTFT and decode against context" in text


def test_a_value_that_is_no_number_does_not_end_the_page(run: Path) -> None:
    """JSON for the charts has no NaN, whatever boots lack."""
    for path in run.rglob("run.json"):
        facts = json.loads(path.read_text())
        del facts["estimates"]["decode_tokens_per_s"]
        path.write_text(json.dumps(facts))
    page = Page(page_of(run))
    assert not re.search(r"\bNaN\b|\bInfinity\b", page.scripts[0])

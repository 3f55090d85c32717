"""The HTML report in headless Chromium: drawn without a network and without errors, used by mouse and keyboard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.report import series
from pytest_kvcache.report.html import document
from tests.unit.test_report_page import make_run

#: A folder of a real run, whose page is tested in place of one that was made up.
RUN = "KVCACHE_REPORT_RUN"
WIDTHS = (1400, 900, 390)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: run `make report-test`")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium is here: install the package chromium")
    with playwright.sync_playwright() as driver:
        # Root has no sandbox of its own; the page is ours.
        arguments = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        started = driver.chromium.launch(executable_path=found, args=arguments, timeout=180_000)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run."""
    folder = tmp_path_factory.mktemp("page")
    run = Path(os.environ[RUN]) if os.environ.get(RUN) else make_run(folder / "run-1")
    return document.write(series.read([run]), folder / "report.html", reference=True)


class Opened:
    """The page in a window, with what it said and asked for.

    Args:
        browser: Running.
        path: Of the page.
        options: Of the window.
    """

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.context.set_default_timeout(120_000)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.evaluate("kvcacheReport.drawAll()")

    def svg(self, key: str) -> str:
        """Return what a chart shows."""
        return str(self.page.inner_html(f'div.chart[data-chart="{key}"]'))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_all_charts_are_drawn_at_every_width_in_both_schemes(
    browser: Any, report: Path, width: int, scheme: str
) -> None:
    """Without a network, without a word on the console, and without a page that is wider than its window."""
    opened = Opened(browser, report, viewport={"width": width, "height": 900}, color_scheme=scheme)
    drawn = opened.page.eval_on_selector_all("div.chart", "all => all.map(each => each.dataset.drawn)")
    assert set(drawn) == {"yes"}
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    assert opened.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    opened.context.close()


def test_a_reader_chooses_cells_tiers_and_times(browser: Any, report: Path) -> None:
    """A select, a checkbox and a range each change what a chart shows, by keys alone."""
    opened = Opened(browser, report, viewport={"width": 1400, "height": 900})
    page = opened.page
    for key, control in (
        ("ttft-ecdf", "#ttft-ecdf select"),
        ("timeline-requests", "#timeline-requests select"),
        ("timeline-requests", '#timeline-requests input[data-signal="to_s"]'),
        ("ttft-ecdf", 'input[name="tier"]'),
    ):
        before = opened.svg(key)
        page.focus(control)
        page.keyboard.press("Space" if control.startswith("input") else "ArrowUp" if "select" in control else "Home")
        page.wait_for_function(
            "([key, before]) => document.querySelector(`div.chart[data-chart='${key}']`).innerHTML !== before",
            arg=[key, before],
        )
    assert opened.said == []
    opened.context.close()


def test_a_keyboard_gets_everywhere(browser: Any, report: Path) -> None:
    """The first stop leads past the navigation to the results, and what is focused is outlined."""
    opened = Opened(browser, report, viewport={"width": 900, "height": 900})
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    opened.context.close()


def test_a_mouse_reads_a_point(browser: Any, report: Path) -> None:
    """A point under the mouse tells its tier, context and value."""
    opened = Opened(browser, report, viewport={"width": 1400, "height": 900})
    opened.page.locator("#chart-tokens-per-s .mark-symbol.role-mark path").last.hover(force=True)
    opened.page.wait_for_selector("#vg-tooltip-element.visible")
    assert "context (tokens)" in opened.page.inner_text("#vg-tooltip-element")
    opened.context.close()


def test_without_scripts_the_first_charts_and_all_tables_are_there(browser: Any, report: Path) -> None:
    """What refuses scripts still shows speed, TTFT and decode against context."""
    context = browser.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#chart .chart svg").count() == 3
    assert page.locator("table").count() > 5
    context.close()


def test_paper_has_light_colours_and_no_controls(browser: Any, report: Path) -> None:
    """In print, also from a dark screen, the page is white and what only a screen can do is gone."""
    opened = Opened(browser, report, viewport={"width": 900, "height": 900}, color_scheme="dark")
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not opened.page.is_visible("nav")
    opened.context.close()

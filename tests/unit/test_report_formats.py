"""What `pytest-kvcache report` writes beside the page: intervals over boots, Markdown, CSV, JSON, published figures."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from pytest_kvcache.cli import main
from pytest_kvcache.report import compared, series, texts
from pytest_kvcache.report.published import PUBLISHED
from tests.unit.test_report import left


@pytest.fixture
def boots(tmp_path: Path) -> Path:
    """A run with three boots of gpu and of pnfs at two contexts, and one of cpu."""
    folder = tmp_path / "runs" / "1"
    for at, factor in enumerate((0.9, 1.0, 1.2), start=1):
        for context in (1000, 9000):
            left(folder, "gpu", context, 1000 * factor, boot=f"boot-{at}")
            left(folder, "pnfs", context, 3000 * factor**2 * context / 9000, boot=f"boot-{at}")
    left(folder, "cpu", 1000, 2000.0)
    return folder


def test_a_point_has_the_t_interval_of_its_boots(boots: Path) -> None:
    """The interval is that of SciPy's t for the logarithms of the boots; one boot has none."""
    points = {(p.label, p.context_tokens, p.figure.key): p for p in compared.points(series.read([boots]))}
    point = points["gpu", 1000, "tokens_per_s"]
    logs = np.log([900.0, 1000.0, 1200.0])
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert (point.low, point.value, point.high) == pytest.approx((math.exp(low), math.exp(logs.mean()), math.exp(high)))
    assert point.boots == len(point.sources) == 3
    alone = points["cpu", 1000, "tokens_per_s"]
    assert (alone.low, alone.high, alone.boots) == (None, None, 1)


def test_a_change_has_welch_s_interval_and_the_most_is_told_with_its_context(boots: Path) -> None:
    """Each context has the ratio of means with the interval of SciPy's Welch test; "up to" is the best of them."""
    found = compared.changes(series.read([boots]), against="gpu")
    each = next(c for c in found if c.label.startswith("pnfs") and c.context_tokens == 9000)
    new, old = (np.log([first * f for f in (0.9, 1.0, 1.2)]) for first in (3000, 1000))
    new = np.log([3000 * f**2 for f in (0.9, 1.0, 1.2)])
    told = stats.ttest_ind(new, old, equal_var=False).confidence_interval(0.95)
    assert (each.low, each.high) == pytest.approx((math.expm1(told.low), math.expm1(told.high)))
    assert each.change == pytest.approx(math.expm1(new.mean() - old.mean()))
    best = {c.figure.short: c for c in compared.best_of(found) if c.label.startswith("pnfs")}
    assert best["processing speed"].context_tokens == best["mean TTFT"].context_tokens == 9000
    assert best["mean TTFT"].change < 0


@example(new=[0.001, 0.001], old=[18015.0, 18015.0])
@given(
    new=st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=6),
    old=st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=6),
)
def test_an_interval_holds_its_change_and_never_a_loss_of_more_than_all(new: list[float], old: list[float]) -> None:
    """Whatever boots gave, the interval of a ratio lies around it and above minus 100 %."""
    change, low, high = compared._ratio(np.log(new), np.log(old))
    assert low is not None
    assert high is not None
    rounding = 1e-8 * (1 + abs(change))
    assert -1 <= low <= change + rounding
    assert change <= high + rounding


@pytest.mark.parametrize("kind", ["md", "csv", "json"])
def test_text_goes_to_a_file_or_alone_to_the_terminal(
    boots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """`--output -` prints nothing but the text, the same that a file gets."""
    path = tmp_path / f"r.{kind}"
    assert main(["report", str(boots), "--output", str(path)]) == 0
    capsys.readouterr()
    assert main(["report", str(boots), "--format", kind, "--output", "-"]) == 0
    assert capsys.readouterr().out.strip() == path.read_text().strip()


def test_json_has_intervals_and_the_file_of_each_number(boots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Points, changes and the most gained name the run.json that they are from; all of it is JSON."""
    assert main(["report", str(boots), "--format", "json", "--output", "-", "--reference"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["schema_version"] == texts.SCHEMA
    assert {Path(s).name for each in found["points"] + found["changes"] for s in each["sources"]} == {"run.json"}
    assert len(found["boots"]) == 13
    assert len(found["published"]["best"]) == len(PUBLISHED)


def test_published_figures_are_marked_and_only_there_when_asked_for(boots: Path) -> None:
    """The article's +201 %, -99 % and +223 % stand under their own heading, and not without `--reference`."""
    rows = series.read([boots])
    with_them = texts.markdown(rows, reference=True)
    assert "Published, not measured here" in with_them
    assert all(text in with_them for text in ("+201%", "-99%", "+223%", "+157%", "-86%", "+174%", "-54%"))
    assert "ublished" not in texts.markdown(rows)


@pytest.mark.parametrize(
    "name",
    ["a|b", "<img src=x>", "[x](y)", "two\nlines", "`code`", "\x1b[31m", "\u202etxt", "~~x~~", "$x$", "&lt;", "@team"],
)
def test_names_are_text_in_markdown(tmp_path: Path, name: str) -> None:
    """No name of a tier opens a cell, a tag, a link or a line, or moves the terminal."""
    path = left(tmp_path, "gpu", 1000, 5.0)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label": name}))
    said = texts.markdown(series.read([tmp_path]))
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert not set("\x1b\u202e") & set(said)
    assert not re.search(r"(?<!\\)(<img|~~x|\$x|&lt;)|@team", said)


def test_names_that_no_terminal_and_no_xml_can_hold_are_drawn_as_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control characters in labels, models and machines reach neither terminal nor chart: drawing them ends Python."""
    hostile = "a\x00\x08\x1b[31m\u202e\ufffe\ufdd0\x9b&<b>"
    path = left(tmp_path / "1", "gpu", 1000, 5.0)
    facts = json.loads(path.read_text())
    keys = facts["comparability"] | {"serving.model": hostile, "hardware.gpus": hostile, "workload.users": hostile}
    path.write_text(json.dumps(facts | {"label": hostile, "comparability": keys}))
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "c.svg"), "--reference"]) == 0
    assert not set("\x00\x08\x1b\u202e\x9b") & set(capsys.readouterr().out)
    drawn = "".join(ElementTree.fromstring((tmp_path / "c.svg").read_text()).itertext())  # noqa: S314 - our own
    assert "\\u001b[31m" in drawn


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--output", "-"], "--output - prints text, not html"),
        (["--format", "png", "--output", "-"], "--output - prints text, not png"),
        (["--format", "png", "--output", "a.svg"], "is not the name of a .png file"),
        (["--output", "a"], "its suffix is no format"),
    ],
)
def test_formats_that_do_not_fit_are_refused(
    boots: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    """What cannot be written so is said in one line, with what to do."""
    assert main(["report", str(boots), *argv]) == 1
    assert said in capsys.readouterr().err

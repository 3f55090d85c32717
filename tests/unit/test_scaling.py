"""How a run grows: what is simulated follows its size, and each limit is named where it is met."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pytest_kvcache.report.html import timeline
from pytest_kvcache.scaling import boots, growth
from pytest_kvcache.scaling.boots import Spread
from pytest_kvcache.scaling.point import Point
from pytest_kvcache.scaling.senders import Words
from pytest_kvcache.scaling.stub import metrics_page
from pytest_kvcache.scaling.tables import Report, Scraped, synthetic_rows
from pytest_kvcache.telemetry.prometheus import STARTED, parse

SMALL = Point(2, 15)


@given(users=st.integers(1, 60), rounds=st.integers(2, 9), duration_s=st.floats(5, 90))
def test_a_size_counts_what_its_workload_sends(users: int, rounds: int, duration_s: float) -> None:
    """Requests are those of the schedule, and users with texts of their own are about as many as it has."""
    point = Point(2, users, rounds=rounds, duration_s=duration_s)
    due = list(point.workload(mode="compat").due())
    assert abs(len(due) - point.requests) <= 1
    assert abs(len({each.user for each in due}) - point.sessions) <= users + 1


def test_synthetic_rows_are_whole_and_the_same_every_time() -> None:
    """Stamps rise, answers are as long as they should be, all servers answer, and no chance is in it."""
    rows = list(synthetic_rows(Point(4, 7), 50))
    assert rows == list(synthetic_rows(Point(4, 7), 50))
    assert len({(row.user, row.round) for row in rows}) == 50
    assert {row.server for row in rows} == {f"vllm-{n}" for n in range(4)}
    for row in rows:
        times = [row.intended_start_s, row.actual_start_s or 0, row.first_token_s or 0, *row.token_times_s[1:]]
        assert times == sorted(times)
        assert len(row.token_times_s) == row.generated_tokens == 100
        assert row.last_token_s == row.token_times_s[-1]


def test_a_page_of_counters_is_read_by_the_code_of_a_run() -> None:
    """The stand-in for a metrics page is Prometheus text, and the run's parser finds its counters."""
    text = metrics_page(3).decode()
    assert list(text_string_to_metric_families(text))
    found = parse(text)
    assert STARTED in found
    assert sum(name.startswith("vllm:") for name in found) > 50


def test_more_spread_takes_more_boots_and_wider_margins() -> None:
    """The procedure that decides asks for more where boots differ more; the same seed gives the same."""
    quiet, noisy = (boots.boots_needed(SMALL, spread=Spread(sd, 0), family=24, sessions=150) for sd in (0.005, 0.04))
    assert quiet.mean < noisy.mean
    assert quiet.margin < noisy.margin
    assert quiet.mean == pytest.approx(1.0, abs=0.2)
    assert noisy == boots.boots_needed(SMALL, spread=Spread(0.04, 0), family=24, sessions=150)


def test_more_users_spread_less_down_to_what_boots_differ_by() -> None:
    """Requests of more users average out; what boots differ by does not."""
    spread = Spread(boot=0.02, request=0.8)
    found = [spread.of(Point(2, users)) for users in (15, 1000, 10_000)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(0.02, rel=0.05)


LIMITS: dict[str, dict[str, Any]] = {
    "load nodes are needed": {"nodes": 3},
    "the script takes": {"script_bytes": 1e12},
    "rows take": {"row_bytes": 1e12},
    "reading them takes": {"scraped": Scraped(30.0, 1, 1)},
    "above 3 MB": {"report": Report(3_500_000, 1)},
    "one prompt after the other": {"priming_s": 1e5},
}


def stops(point: Point = SMALL, **more: Any) -> list[str]:
    """Return what a size stops at, one that nothing stops but for `more`."""
    values: dict[str, Any] = {
        "nodes": 1,
        "script_bytes": 1e6,
        "row_bytes": 1e6,
        "scraped": Scraped(0.1, 1, 1),
        "report": Report(2_000_000, 1),
        "priming_s": 5.0,
    }
    assumed = growth.Assumed(processors=4, memory_bytes=8 << 30)
    return growth._stops(point, assumed, **(values | more))


@pytest.mark.parametrize("words", LIMITS)
def test_each_limit_is_named(words: str) -> None:
    """A size that is too large for one thing is told that one, and no other."""
    (line,) = stops(**LIMITS[words])
    assert words in line


def test_limits_of_the_size_itself() -> None:
    """A baseline's rows and the numbers of users end a size that machines could bear."""
    assert stops() == []
    told = " ".join(stops(Point(64, 12_000)))
    assert "a baseline keeps 1,000,000" in told
    assert "contexts are 100,000 apart" in told
    assert "a baseline keeps" not in " ".join(stops(Point(64, 900)))


def test_the_table_has_each_size_once_in_both_forms() -> None:
    """Markdown has a row a size, the terminal a column; limits and how they are known follow."""
    cells = {"servers": "2", "users": "15", "rows": "~2,400"}
    grown = [
        growth.Grown(SMALL, cells, ()),
        growth.Grown(replace(SMALL, users=99), cells | {"users": "99"}, ("memory",)),
    ]
    text = growth.markdown(grown, ["client: so"])
    assert "| servers | users | rows |\n| --- | --- | --- |\n| 2 | 15 | ~2,400 |\n| 2 | 99 | ~2,400 |" in text
    assert "- 2 servers, 15 users: nothing stops it" in text
    assert "- 2 servers, 99 users: memory" in text
    assert "- client: so" in text
    lines = growth.terminal(grown, ["client: so"])
    assert [line.split() for line in lines[:3]] == [
        ["servers", "2", "2"],
        ["users", "15", "99"],
        ["rows", "~2,400", "~2,400"],
    ]


def test_the_stand_in_for_a_tokenizer_has_words_enough() -> None:
    """A script can be made without a server: enough words, each once."""
    words = Words().words()
    assert len(set(words)) == len(words) >= 50
    assert SMALL.workload(duration_s=30).script(9000, Words()).conversations


def test_a_timeline_of_many_requests_is_made_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was loaded over time is the same in whatever blocks of requests it is added up, and none is left out."""
    rows = pd.DataFrame(
        {"actual_start_s": range(50), "first_token_s": [n + 0.5 for n in range(50)], "last_token_s": range(1, 51)}
    )
    load = SimpleNamespace(answered=rows, cell="c")
    sources = pd.DataFrame({"L1": [float(n) for n in range(50)], "L2": [1.0] * 50})
    monkeypatch.setattr(timeline, "sizes", lambda _: (None, None, None))
    whole = timeline._moved(load, sources)  # type: ignore[arg-type]
    monkeypatch.setattr(timeline, "_BLOCK", 7)
    assert timeline._moved(load, sources) == whole  # type: ignore[arg-type]
    assert {each["k"] for each in whole} == {"L1", "L2"}

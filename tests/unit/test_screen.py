"""One screen at a session's end, and what is shown on the way."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.campaign.progress import Silent
from pytest_kvcache.campaign.result import CellResult
from pytest_kvcache.campaign.runner import RunResult
from pytest_kvcache.probes.probe import Probed
from pytest_kvcache.proof.judge import Proof
from pytest_kvcache.proof.ledger import Ledger, Tokens
from pytest_kvcache.report import cells, progress, screen
from pytest_kvcache.report.session import _undecided
from pytest_kvcache.verdict import procedure
from pytest_kvcache.verdict.cells import Cell, StoredCell
from pytest_kvcache.verdict.interim import Policy
from tests.unit.verdict import make

LONG = "pnfs (stand-in: ext4 on /dev/mapper/data-kvcache, and a name that goes on and on)"
FIGURES = {"ttft_p50_s": 0.0912, "ttft_p99_s": 12.345, "tokens_per_s": 3199.4, "decode_tokens_per_s": 148.8}
TOKENS = Tokens(computed=10, device=60, l1=20, l2=10)


def result(
    tier: str = "pnfs", label: str = LONG, *, worse: float | None = 0.0, suspicions: tuple[str, ...] = ()
) -> CellResult:
    """Return a cell that is worse than its baseline by a log ratio; with None it was measured and no more."""
    proof = Proof(Ledger({"vllm-0": TOKENS}, {}), {}, (), ())
    run = RunResult(
        tier=tier,
        label=label,
        context_tokens=25_000,
        folder=Path("/runs/1"),
        rows=pd.DataFrame(),
        estimates=FIGURES,
        faults=(),
        suspicions=suspicions,
        rounds=None,
        duration_s=24.0,
        proof=proof,
        probed=Probed(),
        comparability={},
        versions={},
    )
    verdict = None
    if worse is not None:
        evidence = procedure.Evidence([make.boot(worse)], make.KEYS | {"workload.context_tokens": "1000"}, make.HASH)
        verdict = procedure.decide(
            evidence, _baseline(), family=make.FAMILY, siblings=(), policy=Policy(), another_boot=False
        )
    cell = Cell("p", "m", tier, 25_000)
    return CellResult(cell=cell, runs=(run,), boots=(), minutes=(1.0,), verdict=verdict)


def _baseline() -> StoredCell:
    return make.stored()


@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 160])
@pytest.mark.parametrize("glyphs", [True, False])
def test_no_line_of_the_table_is_wider_than_the_terminal(width: int, glyphs: bool) -> None:
    """Figures and verdict are there at any width; bar and interval give way first; letters stand for glyphs."""
    results = [result("gpu", "gpu", worse=0.0), result(worse=1.2, suspicions=("other processes took 62 %",))]
    lines = screen.table(results, width=width, colour=False, glyphs=glyphs)
    table = [line for line in lines if not line.startswith(("KV from", "*"))]
    assert all(len(line) <= width for line in table)
    text = "\n".join(table)
    assert "0.091" in text
    assert "12.3" in text
    assert "regressed" in text
    assert ("█" in text) == (glyphs and width >= 72)
    assert glyphs or text.isascii()
    assert f"* {LONG}" in lines
    assert any("+ is worse" in line for line in lines) == any("against" in line for line in lines)


def test_a_row_says_what_changed_and_by_how_much() -> None:
    """The gate that decides stands with its change, worse-positive, and its bounds; "-" where nothing is compared."""
    assert cells.change(result(worse=1.2)).startswith("ttft +232% [")
    assert cells.change(result(worse=None)) == "-"
    assert screen.outcome(result(worse=1.2, suspicions=("x",))) == "regressed !"
    assert screen.outcome(result(worse=None)) == "measured"


counts = st.integers(min_value=0, max_value=10**9)


@given(given=st.tuples(*[counts] * 6), glyphs=st.booleans())
def test_a_bar_hides_no_source(given: tuple[int, ...], glyphs: bool) -> None:
    """A bar always has eight cells, one at least for every source that gave a token, the fastest first."""
    computed, device, l1, l2, other, lost = given
    tokens = Tokens(computed=computed, device=device, l1=l1, l2=l2, other=other, lost=lost)
    bar = screen.bar(tokens, glyphs=glyphs)
    if not tokens.total:
        assert bar == "-"
        return
    signs = "█▓▒░" if glyphs else "D12."
    assert len(bar) == 8
    assert bar == "".join(sorted(bar, key=signs.index))
    there = (device, l1, l2 + other, computed + lost)
    assert [sign in bar for sign in signs] == [count > 0 for count in there]


def test_what_needs_a_person_is_a_line() -> None:
    """Suspicions are told with tier and context; a cell with nothing to tell has no line."""
    lines = list(screen.attention([result(worse=0.0), result(worse=0.0, suspicions=("a", "b"))]))
    assert lines == [f"suspect: {LONG}, context 25000: {each}" for each in ("a", "b")]


def test_tests_with_one_reason_share_a_line() -> None:
    """Undecided tests of one reason are one line that names the first; with -v each has its own."""
    tests = [("t.py::a", "inconclusive", "x"), ("t.py::b", "inconclusive", "x"), ("t.py::c", "incomparable", "x")]
    short = list(_undecided(tests, whole=False))
    assert short == ["INCONCLUSIVE t.py::a and 1 more - x", "INCOMPARABLE t.py::c - x"]
    assert list(_undecided(tests, whole=True)) == [f"{status.upper()} {name} - x" for name, status, _ in tests]


def test_a_log_gets_calm_lines() -> None:
    """A phase is a line with the time that is left; what goes on under way is told only now and then."""
    said: list[str] = []
    shown = progress.CalmProgress(said.append, total_s=300)
    shown.phase("pnfs boot-1", "booting 2 servers")
    for _ in range(50):
        shown.waiting(["vllm-0"])
        shown.load("4 of 24 s: 3 finished")
    assert said == ["pnfs boot-1: booting 2 servers; about 5 min left"]


@pytest.fixture
def terminal() -> Iterator[tuple[io.TextIOWrapper, int]]:
    """A terminal to write to, and the other end of it."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        yield stream, master
    os.close(master)


def test_a_terminal_has_one_line_that_is_taken_away(
    terminal: tuple[io.TextIOWrapper, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal the line is drawn in place; `rest` removes it, and without a phase there is nothing to remove."""
    stream, master = terminal
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    shown = progress.chosen(stream, lambda _: None, verbosity=0, total_s=60)
    assert isinstance(shown, progress.LiveProgress)
    shown.rest()
    shown.phase("cpu boot-1", "booting 2 servers")
    shown.rest()
    stream.flush()
    drawn = ""
    while select.select([master], [], [], 1.0)[0]:
        drawn += os.read(master, 4096).decode()
    shown_at, removed_at = drawn.index("cpu boot-1: booting 2 servers"), drawn.rindex("\x1b[2K")
    assert shown_at < removed_at


@pytest.mark.parametrize(("columns", "cut"), [(60, True), (80, True), (120, False)])
def test_the_time_left_is_there_at_any_width(
    terminal: tuple[io.TextIOWrapper, int], monkeypatch: pytest.MonkeyPatch, columns: int, cut: bool
) -> None:
    """What goes on is cut where the window is too narrow for all of it; how long it still takes is not."""
    stream, master = terminal
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    monkeypatch.setenv("TERM", "xterm")
    shown = progress.LiveProgress(stream, total_s=600)
    shown.phase("gpu boot-1, context 3500", "12 of 24 s: 140 finished, 0 failed, mean TTFT 0.012 s, 13.2 answers/s")
    stream.flush()
    drawn = ""
    while "left" not in drawn and select.select([master], [], [], 5.0)[0]:
        drawn += os.read(master, 4096).decode()
    shown.rest()
    assert "gpu boot-1, context 3500: 12 of 24 s: " in drawn
    assert "; about 10 min left" in drawn
    assert ("answers/s" not in drawn) == ("..." in drawn) == cut


@pytest.mark.parametrize(
    ("environ", "verbosity", "kind"),
    [
        ({"CI": "true", "TERM": "xterm"}, 0, progress.CalmProgress),
        ({"TERM": "dumb"}, 0, progress.CalmProgress),
        ({"TERM": "xterm"}, -1, Silent),
        ({"TERM": "xterm"}, 1, progress.LiveProgress),
    ],
)
def test_who_sees_what(
    terminal: tuple[io.TextIOWrapper, int],
    environ: dict[str, str],
    verbosity: int,
    kind: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CI and plain terminals get calm lines, -q nothing; without a terminal plugin there is nothing to write to."""
    monkeypatch.delenv("CI", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert isinstance(progress.chosen(terminal[0], lambda _: None, verbosity=verbosity, total_s=60), kind)
    assert isinstance(progress.chosen(None, lambda _: None, verbosity=verbosity, total_s=60), Silent)
    assert isinstance(progress.chosen(io.StringIO(), lambda _: None, verbosity=0, total_s=60), progress.CalmProgress)

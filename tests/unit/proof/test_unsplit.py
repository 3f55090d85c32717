"""An LMCache server that does not tell L1 from L2 (0.4.7 to 0.5.4), on real runs without the counters it lacks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_kvcache.proof.balance import balance, client_tokens
from pytest_kvcache.proof.breakdown import components
from pytest_kvcache.proof.claims import check_claim
from pytest_kvcache.proof.expected_hits import simulate
from pytest_kvcache.proof.explain import explain
from pytest_kvcache.proof.hit_differences import hit_differences, warm_start_faults
from pytest_kvcache.proof.ledger import Ledger, Tokens
from pytest_kvcache.report.ledger import LedgerRow, ledger_table
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.telemetry.transfers import Transfers
from tests.unit.proof import real

LOADED = "lmcache_mp_l2_prefetch_load_completed_chunks_total"
OFFLOADING = [name for name in real.WORKING if name.startswith("pnfs")]


@pytest.mark.parametrize("name", OFFLOADING)
def test_nothing_is_booked_as_l1(name: str) -> None:
    """What LMCache delivered has a source of its own, as large as both levels together, and all sums stay."""
    told, untold = real.load(name).ledger.total, real.load(name).unsplit().ledger.total
    assert (untold.l1, untold.l2, untold.l1_found, untold.l2_found) == (0, 0, 0, 0)
    assert untold.unsplit == told.l1 + told.l2 == untold.offloaded == told.offloaded
    assert untold.unsplit_found == told.l1_found + told.l2_found == untold.found
    assert (untold.total, untold.external, untold.cached) == (told.total, told.external, told.cached)
    run = real.load(name).unsplit()
    assert balance(run.ledger, client_tokens(run.rows)) == []


@pytest.mark.parametrize("name", OFFLOADING)
def test_a_claim_on_l2_rests_on_chunks_loaded(name: str) -> None:
    """With chunks loaded from the storage the claim holds, and what it rests on is said."""
    checked = check_claim(Claim.L2, real.load(name).unsplit().ledger)
    assert checked.faults == ()
    (line,) = checked.unchecked
    assert "which from the shared storage: this LMCache does not say (0.5.5 and newer do)" in line
    assert "chunks loaded and on the storage's account" in line


def _nothing_stored(run: real.Run) -> None:
    for name in ("lmcache-0", "lmcache-1"):
        for key in [key for key in run.after[name] if "_l2_" in key]:
            run.after[name][key] = run.before[name].get(key, 0.0)


def _nothing_loaded(run: real.Run) -> None:
    for name in ("lmcache-0", "lmcache-1"):
        run.after[name][LOADED] = run.before[name].get(LOADED, 0.0)


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (_nothing_loaded, "from L1: 91 chunks were stored there and no server finds those of another"),
        (_nothing_stored, "from L1: nothing was stored there: LMCache runs without its L2 adapter"),
    ],
)
def test_a_claim_on_l2_without_loads_is_invalid(breaks: Callable[[real.Run], None], says: str) -> None:
    """Hits alone prove nothing of the storage: without one chunk loaded from it the run is invalid."""
    run = real.load("pnfs-3500").unsplit()
    breaks(run)
    (fault,) = check_claim(Claim.L2, run.ledger).faults
    assert fault.startswith("no prompt token came from the shared storage, ")
    assert says in fault


def test_a_claim_on_l1() -> None:
    """The tier of L1 has its hits, and chunks loaded from an L2 that it does not have are a fault."""
    run = real.load("pnfs-3500").unsplit()
    (fault,) = check_claim(Claim.L1, run.ledger).faults
    assert "chunks came from an L2 that this tier does not have" in fault
    _nothing_loaded(run)
    assert check_claim(Claim.L1, run.ledger).faults == ()
    assert check_claim(Claim.L1, run.ledger).unchecked == ()


def test_the_table_shows_one_column() -> None:
    """L1 and L2 are one column, expected ones too; rows of an LMCache that tells them keep theirs."""
    run = real.load("pnfs-3500-boot")
    want = simulate(run.asks(), run.caches(Claim.L2)).servers
    told = LedgerRow("new", 3500, run.ledger, want)
    untold = LedgerRow("old", 3500, real.load("pnfs-3500-boot").unsplit().ledger, want)
    head, first, second = ledger_table([told, untold]).splitlines()
    assert "L1+L2" in head
    assert "nan" not in (first + second).lower()
    assert "83% (83%)" in second
    assert "83% (83%)" not in first
    assert "L1+L2" not in ledger_table([told])


def test_no_gap_of_a_level_that_is_not_known() -> None:
    """Expected against measured is held for device and LMCache as a whole; nothing is said of L2, and none is warm."""
    run = real.load("pnfs-3500-boot")
    want = simulate(run.asks(), run.caches(Claim.L2)).servers
    ledger = real.load("pnfs-3500-boot").unsplit().ledger
    assert hit_differences(want, ledger) == []
    assert warm_start_faults(want, ledger) == []
    none = Ledger({server: Tokens(computed=t.total) for server, t in ledger.servers.items()}, {})
    assert any("from LMCache" in line for line in hit_differences(want, none))


def test_an_explanation_across_versions() -> None:
    """Against a baseline whose LMCache told both levels, hits are compared as one: none has gone."""
    told, untold = real.load("pnfs-3500-boot"), real.load("pnfs-3500-boot").unsplit()
    figures = [components(run.rows, run.grown) | run.ledger.as_figures() for run in (told, untold)]
    assert "share_l1" not in figures[1]
    for was, now in (figures, figures[::-1]):
        found = explain(was, now)
        assert found is not None
        assert "hits unchanged" in found.summary


def test_a_plugin_that_was_not_loaded() -> None:
    """LMCache inside vLLM without its remote storage sends nobody to `--l2-adapter`: it has none."""
    moved = Transfers(lookups=4, l1_stored=2048, in_process=True)
    ledger = Ledger({"vllm-0": Tokens(computed=1000, l1=1000, l1_found=1000, requested=2000)}, {"vllm-0": moved})
    (fault,) = check_claim(Claim.L2, ledger).faults
    assert "remote_storage_plugins" in fault
    assert "vLLM's log" in fault
    assert "--l2-adapter" not in fault

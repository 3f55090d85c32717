"""Where the time to the first token went."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.proof.breakdown import PARTS, breakdown_of_rows, components
from pytest_kvcache.proof.explain import explain
from pytest_kvcache.report.ledger import LedgerRow, ledger_table
from tests.unit.proof import real

FIGURES = st.fixed_dictionaries(dict.fromkeys(PARTS, st.floats(0, 10)))


@pytest.mark.parametrize("name", [*real.WORKING, real.IDLE])
def test_parts_of_a_real_run_are_its_ttft(name: str) -> None:
    """The parts add up to the mean TTFT, and what is outside of vLLM is neither negative nor most of it."""
    run = real.load(name)
    figures = components(run.rows, run.grown)
    assert sum(figures.get(key, 0.0) for key in PARTS) == pytest.approx(figures["part_ttft_s"], abs=1e-5)
    assert 0 < figures["part_outside_s"] < 0.2 * figures["part_ttft_s"]


def test_a_real_regression_is_explained() -> None:
    """A run whose tier did nothing, against one whose tier worked: prefill, because the hits are gone."""
    was, now = real.load("pnfs-3500-boot"), real.load(real.IDLE)
    found = explain(
        components(was.rows, was.grown) | was.ledger.as_figures(),
        components(now.rows, now.grown) | now.ledger.as_figures(),
    )
    assert found is not None
    assert found.summary == ("mean TTFT +142%: prefill and first token 131 -> 758 ms; hits: L1 30% -> 0%, L2 53% -> 0%")
    assert abs(found.unexplained_s) < 1e-4
    assert found.lines()[-1].strip().startswith("unexplained")


def test_a_slow_storage() -> None:
    """Loads that take longer while hits stay show as the tier's time and throughput."""
    base = {"part_ttft_s": 0.2, "part_lookup_s": 0.012, "part_prefill_s": 0.188, "share_l2": 0.5}
    now = base | {"part_ttft_s": 0.246, "part_lookup_s": 0.058}
    found = explain(base | {"l2_load_bytes_per_s": 790e6}, now | {"l2_load_bytes_per_s": 160e6})
    assert found is not None
    assert found.summary == (
        "mean TTFT +23%: tier: lookup and load from L2 12 -> 58 ms; L2 throughput 790 -> 160 MB/s; hits unchanged"
    )


def test_what_no_part_accounts_for_is_said() -> None:
    """A change that no part shows is named as unexplained."""
    found = explain({"part_ttft_s": 0.1, "part_prefill_s": 0.1}, {"part_ttft_s": 0.2, "part_prefill_s": 0.1})
    assert found is not None
    assert "no part stands out" in found.summary
    assert "+100 ms unexplained" in found.summary


@pytest.mark.parametrize(
    ("slowest", "named"),
    [
        (1980.0, ""),
        (1950.0, ""),  # within 2 %
        (1200.0, "; SM clock of the slowest GPU 1980 -> 1200 MHz"),
    ],
)
def test_clocks_stand_beside_a_change(slowest: float, named: str) -> None:
    """Clocks of A and B are shown, whether they moved or not; one that did is named in the summary."""
    base = {"part_ttft_s": 0.1, "part_prefill_s": 0.1, "gpu_sm_clock_mhz": 1980.0, "gpu_sm_clock_slowest_mhz": 1980.0}
    base |= {"gpu_temperature_c": 62.0, "gpu_throttled_share": 0.0}
    now = base | {"part_ttft_s": 0.15, "part_prefill_s": 0.15, "gpu_sm_clock_slowest_mhz": slowest}
    now |= {"gpu_sm_clock_mhz": (1980.0 + slowest) / 2, "gpu_temperature_c": 88.0, "gpu_throttled_share": 0.4}
    found = explain(base, now)
    assert found is not None
    assert found.summary == f"mean TTFT +50%: prefill and first token 100 -> 150 ms{named}"
    assert found.lines()[-1] == (
        f"  GPUs while busy: SM clock 1980 -> {(1980 + slowest) / 2:.0f} MHz, of the slowest GPU 1980 -> {slowest:.0f} "
        "MHz, 62 -> 88 °C at most, throttled 0% -> 40% of busy samples"
    )
    assert found.facts()["gpus"] == found.lines()[-1].strip()


def test_clocks_of_one_side_only_are_not_compared() -> None:
    """Against a baseline from before GPUs were sampled nothing is said of clocks."""
    base = {"part_ttft_s": 0.1, "part_prefill_s": 0.1}
    found = explain(base, base | {"part_ttft_s": 0.2, "gpu_sm_clock_mhz": 1980.0})
    assert found is not None
    assert found.gpus == ""
    assert "SM clock" not in "\n".join(found.lines())


def test_parts_of_the_first_rounds() -> None:
    """Of a run that is cut short TTFT, queue and first token are those of its rows, split as in the whole run."""
    run = real.load("pnfs-3500-boot")
    whole = components(run.rows, run.grown)
    assert breakdown_of_rows(whole, run.rows) == pytest.approx(
        whole | {"cached_share": run.ledger.total.cached / 62520}, rel=1e-6
    )
    first = run.rows.head(6)
    cut = breakdown_of_rows(whole, first)
    assert cut["part_ttft_s"] == pytest.approx((first["first_token_s"] - first["actual_start_s"]).mean())
    assert sum(cut.get(key, 0.0) for key in PARTS) == pytest.approx(cut["part_ttft_s"], abs=1e-5)
    assert cut["part_lookup_s"] / cut["part_queue_s"] == pytest.approx(whole["part_lookup_s"] / whole["part_queue_s"])
    found = explain(cut, cut | {"cached_share": 0.0})
    assert found is not None
    assert "hits: all" in found.summary


def test_requests_beyond_the_rows_are_no_part_of_a_mean() -> None:
    """Where servers counted more requests than the rows have, means are over what the servers counted."""
    run = real.load("pnfs-3500-boot")
    kept = run.rows.head(8)
    assert components(kept, run.grown)["part_lookup_s"] == components(run.rows, run.grown)["part_lookup_s"]


def test_a_server_that_does_not_say_its_own_ttft() -> None:
    """Without vLLM's own TTFT the rest is not split."""
    run = real.load("gpu-3500")
    own = "vllm:time_to_first_token_seconds"
    grown = {name: {k: v for k, v in c.items() if not k.startswith(own)} for name, c in run.grown.items()}
    figures = components(run.rows, grown)
    assert figures["part_residual_s"] == pytest.approx(run.rows["residual_s"].mean(), abs=1e-6)
    assert "part_outside_s" not in figures


def test_a_baseline_without_parts_explains_nothing() -> None:
    """Baselines from before the parts were stored give no explanation rather than a wrong one."""
    assert explain({}, {"part_ttft_s": 1.0}) is None


@given(old=FIGURES, new=FIGURES)
def test_parts_that_add_up_leave_nothing_unexplained(old: dict[str, float], new: dict[str, float]) -> None:
    """The remainder is the change of TTFT less those of its parts."""
    found = explain(old | {"part_ttft_s": sum(old.values())}, new | {"part_ttft_s": sum(new.values())})
    assert found is not None
    assert found.unexplained_s == pytest.approx(0, abs=1e-9)


def test_the_table() -> None:
    """A line a tier: shares of the prompt tokens by source, and the chunks that went through the storage."""
    row = LedgerRow("pnfs", 3500, real.load("pnfs-3500-boot").ledger)
    head, line = ledger_table([row]).splitlines()
    assert head.split()[:4] == ["tier", "context", "server", "prompt"]
    assert line.split() == ["pnfs", "3500", "all", "62520", "14%", "3%", "30%", "53%", "0", "62/267"]
    expected = {"vllm-0": real.load("pnfs-3500-boot").ledger.total}
    assert "53% (53%)" in ledger_table([LedgerRow("pnfs", 3500, row.ledger, expected)])
    assert len(ledger_table([row], servers=True).splitlines()) == 4
    assert ledger_table([]) == ""

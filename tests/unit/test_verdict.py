"""From rows to a verdict: estimates, comparison, baselines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.catalogue import load
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.load.records import BROKEN, OK, RequestRecord, to_frame
from pytest_kvcache.verdict import baseline
from pytest_kvcache.verdict.baseline import Baseline, Cell, Write
from pytest_kvcache.verdict.decide import Measurement, Verdict, decide
from pytest_kvcache.verdict.environment import comparability, differences, machine_name
from pytest_kvcache.verdict.estimate import estimate
from pytest_kvcache.verdict.metrics import GATED

TOLERANCES = {m.key: 0.1 for m in GATED}
FIGURES = {
    "ttft_mean_s": 1.0,
    "ttft_p90_s": 2.0,
    "requests_per_s": 3.0,
    "tokens_per_s": 4000.0,
    "decode_tokens_per_s": 50.0,
}
CELL = Cell("p", "m", "gpu", 1000)


def stored(estimates: Mapping[str, float] = FIGURES, **keys: str) -> Baseline:
    """Return a baseline with these figures."""
    return Baseline(
        label="gpu", run_id="r", recorded="2026-01-01", comparability=keys, versions={}, estimates=dict(estimates)
    )


def verdict(estimates: Mapping[str, float], base: Baseline | None) -> Verdict:
    """Decide on these figures in the baseline's own environment."""
    keys = base.comparability if base else {}
    return decide(Measurement(dict(estimates), keys), base, TOLERANCES)


def row(user: int, start: float, first: float, last: float, status: str = OK) -> RequestRecord:
    """Return a request of 100 prompt tokens, half of them cached, and 5 generated ones."""
    step = (last - first) / 4
    return RequestRecord(
        user=user,
        round=1,
        intended_start_s=start - 0.01,
        due_s=start - 0.002,
        actual_start_s=start,
        server_queue_s=0.01,
        residual_s=0.005,
        server_ttft_s=first - start - 0.015,
        first_token_s=first,
        last_token_s=last,
        prompt_tokens=100,
        generated_tokens=5,
        cached_tokens=50,
        status=status,
        token_times_s=[first + i * step for i in range(5)],
    )


def test_figures_of_a_run() -> None:
    """TTFT, ITL, throughputs and counts follow their definitions."""
    rows = to_frame([row(1, 0.0, 0.5, 0.9), row(2, 1.0, 1.1, 1.5), row(3, 2.0, 2.2, 3.0, BROKEN)])
    rows = pd.concat([rows, to_frame([RequestRecord(user=4, round=1, intended_start_s=3.0)])])
    e = estimate(rows, duration_s=4)
    assert (e["scheduled"], e["sent"], e["finished"], e["failed"]) == (4, 3, 2, 1)
    assert e["qps_delivered"] == pytest.approx(3 / 4)
    assert e["ttft_mean_s"] == pytest.approx(0.3)
    assert e["ttft_p90_s"] == pytest.approx(0.46)
    assert e["ttft_from_intended_mean_s"] == pytest.approx(0.31)
    assert e["send_late_p99_s"] == pytest.approx(0.002)
    assert e["residual_p99_s"] == pytest.approx(0.005)
    assert e["itl_mean_s"] == pytest.approx(0.1)
    assert e["decode_tokens_per_s"] == pytest.approx(5 / 0.4)
    assert e["decode_mean_tokens_per_s"] == pytest.approx(5 / 0.4)
    assert e["requests_per_s"] == pytest.approx(2 / 1.5)
    assert e["tokens_per_s"] == pytest.approx(210 / 1.5)
    assert e["cached_share"] == pytest.approx(0.5)


def test_a_burst_does_not_make_decoding_fast() -> None:
    """One request whose tokens arrive at once moves the reference's mean of ratios, not the compared figure."""
    rows = [row(i, i, i + 0.5, i + 0.9) for i in range(9)]
    burst = row(9, 9.0, 9.5, 9.501)
    plain, with_burst = (estimate(to_frame(r), duration_s=10) for r in (rows, [*rows, burst]))
    assert with_burst["decode_mean_tokens_per_s"] > 10 * plain["decode_mean_tokens_per_s"]
    assert with_burst["decode_tokens_per_s"] == pytest.approx(plain["decode_tokens_per_s"], rel=0.12)


def test_a_run_without_a_finished_request_has_counts_only() -> None:
    """No figure is made up where nothing finished."""
    e = estimate(to_frame([row(1, 0.0, 0.5, 0.9, BROKEN)]), duration_s=1)
    assert e["failed"] == 1
    assert "ttft_mean_s" not in e


def test_equal_figures_pass() -> None:
    """The same figures as the baseline's pass, with every metric compared."""
    v = verdict(FIGURES, stored())
    assert v.status == "pass"
    assert {c.metric.key for c in v.changes} == set(FIGURES)


@pytest.mark.parametrize("metric", GATED, ids=lambda m: m.key)
def test_each_metric_can_fail_alone(metric: object) -> None:
    """One metric worse by more than its tolerance is a regression, whichever way is worse for it."""
    for m in GATED:
        if m is not metric:
            continue
        worse = FIGURES[m.key] * (0.89 if m.higher_is_better else 1.11)
        fine = FIGURES[m.key] * (0.91 if m.higher_is_better else 1.09)
        assert verdict({**FIGURES, m.key: worse}, stored()).status == "regressed"
        assert verdict({**FIGURES, m.key: fine}, stored()).status == "pass"


def test_better_is_improved_and_succeeds() -> None:
    """A metric better by more than its tolerance says that the baseline is stale, and does not fail."""
    v = verdict({**FIGURES, "ttft_mean_s": 0.5}, stored())
    assert (v.status, v.succeeds) == ("improved", True)


def test_regressed_wins_over_improved() -> None:
    """One better metric does not buy back a worse one."""
    assert verdict({**FIGURES, "ttft_mean_s": 0.5, "tokens_per_s": 2000}, stored()).status == "regressed"


def test_nothing_passes_silently() -> None:
    """No baseline, another environment and a fault each have a verdict that does not succeed."""
    assert verdict(FIGURES, None).status == "no-baseline"
    other = decide(Measurement(FIGURES, {"cpu": "b"}), stored(cpu="a"), TOLERANCES)
    assert (other.status, other.reasons) == ("incomparable", ("cpu: a -> b",))
    faulty = decide(Measurement(FIGURES, {}, ["3 requests failed"]), stored(), TOLERANCES)
    assert (faulty.status, faulty.reasons) == ("invalid", ("3 requests failed",))
    assert not any(v.succeeds for v in (verdict(FIGURES, None), other, faulty))


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, None])
def test_figures_that_are_none_are_invalid(value: float | None) -> None:
    """A metric that is missing or not a positive number makes the run invalid, never a pass."""
    figures = {k: v for k, v in {**FIGURES, "ttft_mean_s": value}.items() if v is not None}
    assert verdict(figures, stored()).status == "invalid"


factors = st.fixed_dictionaries({m.key: st.floats(0.2, 5) for m in GATED})


@given(factors, st.floats(0.01, 100))
def test_verdicts_do_not_depend_on_the_unit(change: dict[str, float], scale: float) -> None:
    """Measuring then and now in another unit changes no status."""
    new = {k: FIGURES[k] * change[k] for k in FIGURES}
    scaled = verdict({k: v * scale for k, v in new.items()}, stored({k: v * scale for k, v in FIGURES.items()}))
    near = any(abs(abs(c.worse_by) - c.tolerance) < 1e-9 for c in scaled.changes)
    assert near or verdict(new, stored()).status == scaled.status


@given(factors, st.sampled_from(GATED), st.floats(1.0, 3))
def test_getting_worse_never_helps(change: dict[str, float], metric: object, factor: float) -> None:
    """A run that regressed still does when one metric gets worse yet."""
    new = {k: FIGURES[k] * change[k] for k in FIGURES}
    for m in GATED:
        if m is metric:
            worse = {**new, m.key: new[m.key] / factor if m.higher_is_better else new[m.key] * factor}
            if verdict(new, stored()).status == "regressed":
                assert verdict(worse, stored()).status == "regressed"


def test_a_baseline_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """What is written is read back equal, in a file that sorts and indents its keys."""
    (path,) = baseline.write_all(tmp_path, [Write(CELL, stored(cpu="a"))])
    assert path == tmp_path / "p" / "m" / "gpu" / "context-1000.json"
    assert baseline.read(path) == stored(cpu="a")
    assert path.read_text().splitlines()[1] == '  "comparability": {'


def test_a_baseline_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing fails the old file is whole and no other file is left."""
    (path,) = baseline.write_all(tmp_path, [Write(CELL, stored())])
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(BaselineError, match="disk full"):
        baseline.write_all(tmp_path, [Write(CELL, stored({**FIGURES, "ttft_mean_s": 9.0}))])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema_version": 1}',
        '{"schema_version": "x"}',
        "\x00\x01",
        '{"estimates": {"a": "b"}}',
    ],
)
def test_a_damaged_baseline_is_a_clear_error(tmp_path: Path, text: str) -> None:
    """Whatever the file holds, the error names it and the way out."""
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(BaselineError, match=r"b\.json: is not a baseline(.|\n)*--update-baselines"):
        baseline.read(path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    """A file of a later schema is refused with the command that helps."""
    path = tmp_path / "b.json"
    path.write_text(json.dumps(stored().model_dump() | {"schema_version": 99}))
    with pytest.raises(BaselineError, match=r"schema 99, this version reads 1"):
        baseline.read(path)


def test_the_same_cell_elsewhere(tmp_path: Path) -> None:
    """Other machines' files of a cell are found, its own is not."""
    for machine in ("m", "n"):
        baseline.write_all(tmp_path, [Write(Cell("p", machine, "gpu", 1000), stored())])
    assert list(baseline.elsewhere(tmp_path, CELL)) == ["n"]


def test_what_decides_comparability() -> None:
    """Hardware, storage, serving and workload do; names, tolerances and versions do not."""
    profile = load(None).profile("cpu-tiny")

    def keys(p: object = profile, **more: object) -> dict[str, str]:
        arguments = {
            "context_tokens": 1000,
            "model_id": "tiny",
            "hardware": {"cpu": "x"},
            "storage": {"storage": "none"},
            "launcher": "process",
        }
        return comparability(p, **{**arguments, **more})  # type: ignore[arg-type]

    assert differences(keys(), keys(hardware={"cpu": "y"})) == ["hardware.cpu: x -> y"]
    assert differences(keys(), keys(storage={"storage": "s3"})) == ["storage.storage: none -> s3"]
    assert differences(keys(), keys(profile.model_copy(update={"dtype": "bfloat16"}))) == [
        "serving.dtype: float32 -> bfloat16"
    ]
    renamed = profile.model_copy(update={"name": "other", "description": "other", "boot_timeout_s": 1.0})
    assert differences(keys(), keys(renamed)) == []


def test_machines_have_readable_names() -> None:
    """A machine's name is a file name, and differs when any fact does."""
    one = {"cpu": "AMD EPYC (TM)", "cores": "2", "memory_gib": "24", "gpus": "none"}
    assert machine_name(one).startswith("amd-epyc-tm-2-cores-")
    assert machine_name(one) != machine_name({**one, "memory_gib": "48"})
    assert machine_name({**one, "gpus": "NVIDIA H100, NVIDIA H100"}).startswith("nvidia-h100-")

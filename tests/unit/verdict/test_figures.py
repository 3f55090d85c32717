"""From the rows of a run to its figures, and what must be equal for two of them to be compared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mstats

from pytest_kvcache.campaign.comparability import comparability, machine_name
from pytest_kvcache.load.records import BROKEN, OK, RequestRecord
from pytest_kvcache.load.table import to_frame
from pytest_kvcache.load.validity import suspicions
from pytest_kvcache.proof.breakdown import components
from pytest_kvcache.report.terminal import run_lines
from pytest_kvcache.tiers.catalogue import load
from pytest_kvcache.verdict.comparability import differences
from pytest_kvcache.verdict.estimate import WINSORIZED, estimate, log_ttft


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
    assert [e[f"itl_p{p}_s"] for p in (50, 90, 99)] == pytest.approx([0.1] * 3)
    assert [e[f"tpot_{name}_s"] for name in ("mean", "p50", "p90", "p99")] == pytest.approx([0.1] * 4)
    assert e["decode_tokens_per_s"] == pytest.approx(5 / 0.4)
    assert e["decode_mean_tokens_per_s"] == pytest.approx(5 / 0.4)
    assert e["requests_per_s"] == pytest.approx(2 / 1.5)
    assert e["tokens_per_s"] == pytest.approx(210 / 1.5)
    assert e["cached_share"] == pytest.approx(0.5)


def test_figures_where_the_server_does_not_say_its_times() -> None:
    """An engine without per-request metrics costs the residual and its parts of TTFT; every other figure stays."""
    told = to_frame([row(1, 0.0, 0.5, 0.9), row(2, 1.0, 1.1, 1.5)])
    untold = told.assign(server_queue_s=float("nan"), server_ttft_s=float("nan"), residual_s=float("nan"))
    with_times, without = estimate(told, duration_s=4), estimate(untold, duration_s=4)
    assert {key: with_times[key] for key in without} == without
    assert with_times.keys() - without.keys() == {"residual_p50_s", "residual_p99_s"}
    assert "client TTFT less the server's own: p50 -, p99 - ms" in run_lines(without)
    assert suspicions(untold, load(None).profile("cpu-tiny").workload) == []
    assert components(untold, {}) == {}


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
    # What the profile's image is decides, however it is named; without one there is no such key.
    tagged = profile.model_copy(update={"image": "kv:1"})
    assert differences(keys(), keys(tagged)) == []
    assert differences(keys(image="sha256:a"), keys(image="sha256:b")) == ["serving.image: sha256:a -> sha256:b"]


def test_machines_have_readable_names() -> None:
    """A machine's name is a file name, and differs when any fact does."""
    one = {"cpu": "AMD EPYC (TM)", "cores": "2", "memory_gib": "24", "gpus": "none"}
    assert machine_name(one).startswith("amd-epyc-tm-2-cores-")
    assert machine_name(one) != machine_name({**one, "memory_gib": "48"})
    assert machine_name({**one, "gpus": "NVIDIA H100, NVIDIA H100"}).startswith("nvidia-h100-")


@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=120))
def test_ttft_is_winsorized_as_scipy_does(ttft_s: list[float]) -> None:
    """The longest and the shortest twentieth of the requests count as the next ones do."""
    rows = to_frame([row(n, float(n), n + each, n + each + 1.0) for n, each in enumerate(ttft_s)])
    measured = np.log((rows["first_token_s"] - rows["actual_start_s"]).to_numpy())
    expected = mstats.winsorize(measured, limits=(WINSORIZED, WINSORIZED))
    np.testing.assert_allclose(log_ttft(rows).to_numpy(), np.asarray(expected))

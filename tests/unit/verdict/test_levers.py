"""Tables of what makes boots alike, as `benchmarks.power.levers` prints them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from benchmarks.power import levers


def _boots(wild: float = 0.03) -> pd.DataFrame:
    """Return twelve rounds of three levers: hours are in TTFT and processor time, one lever spreads by `wild`."""
    random = np.random.default_rng(1)
    hours = random.normal(0, 0.2, 12)
    rows = []
    for number, hour in enumerate(hours):
        for lever, sd in (("none", 0.03), ("calm", 0.03), ("wild", wild)):
            ttft = math.log(0.2) + hour + random.normal(0, sd)
            row = {"lever": lever, "round": number, "log_ttft": ttft, "log_cpu_s": hour + random.normal(0, 0.01)}
            row |= {"log_matmul_s": random.normal(0, 0.1), "log_wakeup_s": random.normal(0, 0.1)}
            rows.append(row | ({"log_hit_over_cold": random.normal(-1.7, 0.05)} if lever == "wild" else {}))
    return pd.DataFrame(rows)


def test_a_lever_is_told_net_of_the_hour() -> None:
    """All levers spread as hours do; beside the mean of their rounds only one spreads far."""
    told = levers.table(_boots(wild=0.3)).set_index("lever")["ttft"]
    net = {lever: float(cell.rpartition("net ")[2].rstrip("%")) for lever, cell in told.items()}
    assert 1.4 * max(net["none"], net["calm"]) < net["wild"]
    assert all(float(cell.split(": ")[1].split("%")[0]) > 12 for cell in told)


def test_a_figure_that_one_lever_has_is_net_of_nothing() -> None:
    """Hits over cold prefill are there for one lever alone: its round has no mean but its own."""
    told = levers.table(_boots()).set_index("lever")["hit_over_cold"]
    assert told["none"] == ""
    assert "net" not in told["wild"]


def test_what_moves_with_ttft_is_told_from_what_does_not() -> None:
    """Processor time follows the hour here, and a canary that knows nothing of it explains nothing."""
    lines = levers.explained(_boots())
    of = {line.partition(":")[0]: float(line.partition("r = ")[2].split(",")[0]) for line in lines[1:]}
    assert of["cpu_s"] > 0.9
    assert abs(of["matmul_s"]) < 0.5

"""What runs have left, as one table: the data of the reference article's chart and of its table.

The article has one chart (aggregate processing speed against length of user context, a line a scenario) and one table
(the pNFS tier against GPU only and against GPU + CPU: most that processing speed, mean TTFT and decode throughput per
request gained over all lengths). `chart.py` draws the first from this table; `best` gives the second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pytest_kvcache.errors import ConfigError


@dataclass(frozen=True)
class Figure:
    """A column of the article's table, and a panel of the chart.

    Args:
        key: Of `verdict.estimate`.
        label: With its unit.
        short: Without.
        higher_is_better: As in `verdict.metrics`.
    """

    key: str
    label: str
    short: str
    higher_is_better: bool


FIGURES = (
    Figure("tokens_per_s", "processing speed (prompt + generated tokens/s)", "processing speed", higher_is_better=True),
    Figure("ttft_mean_s", "mean TTFT (s)", "mean TTFT", higher_is_better=False),
    Figure(
        "decode_tokens_per_s",
        "decode throughput per request (tokens/s)",
        "decode throughput",
        higher_is_better=True,
    ),
)
#: Runs that differ in any of these are no points of one chart; only the context's length is meant to differ.
_SAME = ("hardware.", "serving.model", "serving.dtype", "workload.")
_AXIS = "workload.context_tokens"
#: The article's table holds the pNFS tier against these two.
YARDSTICKS = ("gpu", "cpu")


def read(runs: Iterable[Path]) -> pd.DataFrame:
    """Return a row for each boot of a tier at a context length, in the order in which they were taken.

    Args:
        runs: Folders of sessions (`.kvcache/runs/ID`), or folders with several of them (what CI has downloaded).

    Returns:
        `label` (the tier as outputs name it, with the arm of an A/B), `context_tokens`, `started_at` (seconds since
        1970), `faults` (why no figure may rest on the boot; "" where one may), the keys of `FIGURES`, `model`,
        `hardware` and `workload` in words. `attrs["left_out"]` has a line for each load that left no figures.

    Raises:
        ConfigError: There is no measured run, or runs are not of the same model, hardware and workload.
    """
    folders = list(runs)
    paths = sorted(path for folder in folders for path in folder.rglob("*boot-*/context-*/run.json"))
    if not paths:
        raise ConfigError(
            "no boot was measured there", where=", ".join(map(str, folders)), todo="name a folder of .kvcache/runs"
        )
    rows: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    left_out = [f"{path}: it was cut short" for folder in folders for path in _unfinished(folder)]
    for path in paths:
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            keys = {k: v for k, v in facts["comparability"].items() if k.startswith(_SAME) and k != _AXIS}
            row = _row(path, facts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = "it was cut short" if isinstance(error, KeyError) else f"it is not what a run leaves ({error!r:.100})"
            left_out.append(f"{path.parent}: {why}")
            continue
        rows.append(row)
        first = first or keys
        differs = [key for key in sorted({*first, *keys}) if first.get(key) != keys.get(key)]
        if differs:
            raise ConfigError(
                f"is another {differs[0]} ({keys.get(differs[0])}) than {paths[0]} ({first.get(differs[0])})",
                where=str(path),
                todo="chart runs of one model, machine and workload",
            )
    if not rows:
        raise ConfigError(
            f"no boot was measured to its end there: {left_out[0]}",
            where=", ".join(map(str, folders)),
            todo="run again",
        )
    table = pd.DataFrame(rows).sort_values("started_at", kind="stable", ignore_index=True)
    table.attrs["left_out"] = left_out
    return table


def _unfinished(folder: Path) -> list[Path]:
    """Return the folders of loads that were begun and left no facts."""
    begun = sorted(path.parent for path in folder.rglob("*boot-*/context-*/plan.json"))
    return [path for path in begun if not (path / "run.json").exists()]


def _row(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    keys = facts["comparability"]
    arm = path.parts[-3].partition("boot-")[0]
    asked = [f"{keys[f'workload.{name}']} {name}" for name in ("users", "rounds") if f"workload.{name}" in keys]
    asked += [f"{keys['workload.qps']} requests/s"] if "workload.qps" in keys else []
    asked += [f"{float(keys['workload.duration_s']):g} s"] if "workload.duration_s" in keys else []
    gpus = keys["hardware.gpus"]
    row = {
        "label": f"{facts['label']} ({arm.upper()})" if arm else facts["label"],
        "context_tokens": int(keys[_AXIS]),
        # A load that was cut short before it told its start counts from when that was written down.
        "started_at": float(facts["load"].get("started_at", path.stat().st_mtime)),
        "faults": "; ".join(facts["faults"]),
        "model": keys["serving.model"],
        "hardware": f"{keys['hardware.cores']} cores of {keys['hardware.cpu']}" if gpus == "none" else gpus,
        "workload": ", ".join(asked),
    }
    return row | {figure.key: facts["estimates"].get(figure.key) for figure in FIGURES}


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over valid boots of each figure, a row a label and context, labels in the order of `rows`."""
    valid = rows[rows["faults"] == ""]
    keys = [figure.key for figure in FIGURES]
    grouped = valid.groupby(["label", "context_tokens"], sort=False)
    result = grouped[keys].mean().assign(boots=grouped.size()).reset_index()
    order = {label: at for at, label in enumerate(rows["label"].unique())}
    return result.sort_values(
        ["label", "context_tokens"], key=lambda column: column.map(order) if column.name == "label" else column
    ).reset_index(drop=True)


def best(table: pd.DataFrame, *, against: str) -> pd.DataFrame:
    """Return the most that each tier gained over another, for each figure, over all contexts that both have.

    Args:
        table: Of `means`.
        against: Label of the other tier.

    Returns:
        A row a tier: `tier`, then each figure's best change with the context at which it was; no row where there is
        nothing to compare.
    """
    base = table[table["label"] == against].set_index("context_tokens")
    lines = []
    for label, rows in table[table["label"] != against].groupby("label", sort=False):
        shared = rows.set_index("context_tokens")
        shared = shared.loc[shared.index.intersection(base.index)]
        line = {"tier": str(label)}
        for figure in FIGURES:
            change = (shared[figure.key] / base.loc[shared.index, figure.key] - 1).dropna()
            if not change.empty:
                at = change.idxmax() if figure.higher_is_better else change.idxmin()
                line[figure.short] = f"{change[at]:+z.0%} (at {at})"
        if len(line) > 1:
            lines.append(line)
    return pd.DataFrame(lines)


def best_tables(table: pd.DataFrame, *, against: Iterable[str] = YARDSTICKS) -> list[str]:
    """Return `best` as outputs print it, a text for each of `against` that there is something to hold against.

    Args:
        table: Of `means`.
        against: Labels of the other tiers.
    """
    found = {label: best(table, against=label) for label in against}
    return [
        f"at best, against {label}:\n{rows.to_string(index=False)}" for label, rows in found.items() if not rows.empty
    ]

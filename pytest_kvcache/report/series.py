"""What runs have left, as one table: the data of the reference article's chart and of its table.

The article has one chart (aggregate processing speed against length of user context, a line a scenario) and one table
(the pNFS tier against GPU only and against GPU + CPU: most that processing speed, mean TTFT and decode throughput per
request gained over all lengths). `chart.py` draws the first from this table; `compared.py` makes the second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.showable import visible


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


class NothingMeasuredError(ConfigError):
    """No boot in a folder came to the end of a load."""


class _Load(BaseModel):
    # A moment that a calendar has: reports name the day.
    started_at: Annotated[float, Field(ge=0, lt=2**33)] | None = None


class _Estimates(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    tokens_per_s: float | None = None
    ttft_mean_s: float | None = None
    decode_tokens_per_s: float | None = None


class _Facts(BaseModel):
    """What is read of a `run.json`; estimates and faults come last, so that a run that was cut short lacks them."""

    label: str
    comparability: dict[str, str]
    load: _Load = Field(default_factory=_Load)
    estimates: _Estimates | None = None
    faults: list[str] | None = None
    imported: dict[str, Any] | None = None


def read(runs: Iterable[Path]) -> pd.DataFrame:
    """Return a row for each boot of a tier at a context length, in the order in which they were taken.

    Args:
        runs: Folders of sessions (`.kvcache/runs/ID`), or folders with several of them (what CI has downloaded).

    Returns:
        `label` (the tier as outputs name it, with the arm of an A/B), `context_tokens`, `started_at` (seconds since
        1970), `faults` (why no figure may rest on the boot; "" where one may), the keys of `FIGURES`, `model`,
        `hardware` and `workload` in words, `source`, the file that it was read from, and `imported` (another tool's
        result, of some other machine: it stands after the others, and nothing is held against it).
        `attrs["left_out"]` has a line for each boot and load that left no figures.

    Raises:
        NothingMeasuredError: There is no boot with figures.
        ConfigError: Runs are not of the same model, hardware and workload.
    """
    folders = list(runs)
    paths = sorted({path for folder in folders for path in folder.rglob("*boot-*/context-*/run.json")})
    rows: list[dict[str, Any]] = []
    first: dict[str, str] = {}
    first_path = Path()
    left_out = sorted({line for folder in folders for line in _unfinished(folder)})
    for path in paths:
        try:
            facts = _Facts.model_validate_json(path.read_bytes())
            row = _row(path, facts)
        except (OSError, ValueError, KeyError) as error:
            left_out.append(f"{path.parent}: its run.json is damaged: {_why(error)}")
            continue
        if row is None:
            left_out.append(f"{path.parent}: it was cut short")
            continue
        rows.append(row)
        if row["imported"]:
            continue
        keys = {k: v for k, v in facts.comparability.items() if k.startswith(_SAME) and k != _AXIS}
        if not first:
            first, first_path = keys, path
        differs = [key for key in sorted({*first, *keys}) if first.get(key) != keys.get(key)]
        if differs:
            raise ConfigError(
                f"is another {differs[0]} ({keys.get(differs[0])}) than {first_path} ({first.get(differs[0])})",
                where=str(path),
                todo="chart runs of one model, machine and workload",
            )
    if not rows:
        more = f" to its end there: {'; '.join(left_out)}" if left_out else " there"
        raise NothingMeasuredError(
            f"no boot was measured{more}", where=", ".join(map(str, folders)), todo="name a folder of .kvcache/runs"
        )
    table = pd.DataFrame(rows).sort_values(["imported", "started_at"], kind="stable", ignore_index=True)
    # Where all answers have one token, no boot has a decode throughput.
    table = table.astype({figure.key: "float64" for figure in FIGURES})
    table.attrs["left_out"] = [_line(line) for line in left_out]
    return table


def _unfinished(folder: Path) -> Iterator[str]:
    """Yield a line for each load that was begun and left no facts, and for each boot that no load was sent to."""
    for boot in folder.rglob("*boot-*"):
        if not boot.is_dir():
            continue
        loads = [path for path in boot.glob("context-*") if path.is_dir()]
        if not loads:
            yield f"{boot}: it ended before its first load"
        for load in loads:
            if not (load / "run.json").exists():
                yield f"{load}: it was cut short"


def _why(error: Exception) -> str:
    """Return what is wrong with a file, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        return f"{key + ': ' if key else ''}{first['msg']}"[:200]
    return f"it lacks {error}" if isinstance(error, KeyError) else f"{error!s:.200}"


def _row(path: Path, facts: _Facts) -> dict[str, Any] | None:
    """Return a row of the table, None where the load was cut short.

    Raises:
        KeyError: A key that the table needs is not among those of comparability.
        ValueError: One has no number for a value.
    """
    if facts.estimates is None or facts.faults is None:
        return None
    keys = facts.comparability
    arm = path.parts[-3].partition("boot-")[0]
    asked = [f"{keys[f'workload.{name}']} {name}" for name in ("users", "rounds") if f"workload.{name}" in keys]
    asked += [f"{keys['workload.qps']} requests/s"] if "workload.qps" in keys else []
    asked += [f"{float(keys['workload.duration_s']):g} s"] if "workload.duration_s" in keys else []
    gpus = keys["hardware.gpus"]
    started_at = facts.load.started_at
    row = {
        "label": _line(f"{facts.label} ({arm.upper()})" if arm else facts.label),
        "context_tokens": int(keys[_AXIS]),
        # A load that was cut short before it told its start counts from when that was written down.
        "started_at": path.stat().st_mtime if started_at is None else started_at,
        "faults": _line("; ".join(facts.faults)),
        "model": _line(keys["serving.model"]),
        "hardware": _line(f"{keys['hardware.cores']} cores of {keys['hardware.cpu']}" if gpus == "none" else gpus),
        "workload": _line(", ".join(asked)),
        "imported": facts.imported is not None,
        "source": str(path),
    }
    return row | facts.estimates.model_dump()


def _line(text: str) -> str:
    """Return a text of a run's file as one line that a table, a chart and a terminal can show."""
    return " ".join(visible(text).split())


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the geometric mean over valid boots of each figure, a row a label and context.

    Labels are in the order of `rows`. A figure that is zero in a boot has no logarithm, and is not of this boot.
    """
    valid = rows[rows["faults"] == ""]
    keys = [figure.key for figure in FIGURES]
    logs = valid.copy()
    logs[keys] = np.log(valid[keys].where(valid[keys] > 0).to_numpy(dtype=float))
    grouped = logs.groupby(["label", "context_tokens"], sort=False)
    result = grouped[keys].mean().map(math.exp).assign(boots=grouped.size()).reset_index()
    order = {label: at for at, label in enumerate(rows["label"].unique())}
    return result.sort_values(
        ["label", "context_tokens"], key=lambda column: column.map(order) if column.name == "label" else column
    ).reset_index(drop=True)

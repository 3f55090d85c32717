"""Writes another tool's loads as the folder of a run: marked as imported, so that nothing is held against them."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kvcache.interop import aiperf, guidellm, reference
from pytest_kvcache.interop.boots import ROWS, RUN, Imported
from pytest_kvcache.interop.results import Reader, Series
from pytest_kvcache.load import records
from pytest_kvcache.load.table import to_frame
from pytest_kvcache.runs.files import write_json
from pytest_kvcache.verdict.estimate import estimate

READERS: Mapping[str, Reader] = {
    "reference-csv": reference.read,
    "aiperf": aiperf.read,
    "guidellm": guidellm.read,
}
_NOT_TOLD = "not told"


@dataclass(frozen=True)
class Told:
    """What a person says of the files, since the files do not.

    Args:
        label: Name of the tier in tables and charts.
        context_tokens: Length of the user context.
        machine: Hardware in words.
        model: Name of the model, "" to take the file's.
    """

    label: str
    context_tokens: int
    machine: str = ""
    model: str = ""


def write(runs: Path, told: Told, files: Sequence[tuple[Imported, Sequence[Series]]]) -> Path:
    """Write a run with a boot for each file, and a tier for each series of the same name; return its folder.

    Raises:
        OSError: It cannot be written.
    """
    folder = runs / f"imported-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    folder.mkdir(parents=True)
    boots: dict[str, int] = {}
    for imported, every in files:
        for series in every:
            name = f"{told.label} {series.name}".strip()
            tier = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.") or "imported"
            boots[tier] = boots.get(tier, 0) + 1
            at = folder / tier / f"boot-{boots[tier]}" / f"context-{told.context_tokens}"
            at.mkdir(parents=True)
            records.save(series.requests, at / ROWS)
            write_json(at / RUN, _facts(name, told, imported, series))
    return folder


def _facts(name: str, told: Told, imported: Imported, series: Series) -> dict[str, Any]:
    model = told.model or series.model or _NOT_TOLD
    last = max(each.last_token_s or 0.0 for each in series.requests)
    figures = estimate(to_frame(series.requests), duration_s=max(last, 1e-3))
    return {
        "label": f"{name} (imported: {imported.tool})",
        "imported": imported.model_dump() | {"version": series.version},
        "comparability": {
            "hardware.cpu": told.machine or _NOT_TOLD,
            "hardware.cores": _NOT_TOLD,
            "hardware.gpus": told.machine or _NOT_TOLD,
            "serving.model": model,
            "workload.context_tokens": str(told.context_tokens),
        },
        "versions": {},
        "settings": {"model": model, "context_tokens": told.context_tokens, "workload": {}},
        "commands": {},
        "load": {"started_at": series.started_at, "elapsed_s": last},
        "estimates": {key: value for key, value in figures.items() if math.isfinite(value)},
        "faults": [],
        "suspicions": list(series.notes),
    }

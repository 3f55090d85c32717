"""What one load of one boot left, read from its folder: facts, rows of requests, samples of GPUs, probes.

Whatever is missing or damaged is a line, and the rest of the report is made all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_kvcache.errors import ResultsError
from pytest_kvcache.load import table
from pytest_kvcache.proof.ledger import Tokens

_ROWS, _GPUS, _PROBES = "requests.parquet", "gpus.parquet", "probes.json"


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class LoadFacts(_Lenient):
    """What is read of `load` in a `run.json`.

    Args:
        started_at: Seconds since 1970.
        elapsed_s: From the start of the clock to the last answer.
        counters_before: By component.
        counters_after: By component.
        primed_on: Server that answered each request before the clock.
    """

    started_at: float | None = None
    elapsed_s: float | None = None
    counters_before: dict[str, dict[str, float]] = Field(default_factory=dict)
    counters_after: dict[str, dict[str, float]] = Field(default_factory=dict)
    primed_on: list[str] = Field(default_factory=list)


class ProofFacts(_Lenient):
    """What is read of `proof` in a `run.json`.

    Args:
        servers: Prompt tokens by server and source.
        expected: The same, of an LRU hierarchy.
        unchecked: What could not be checked.
        findings: Where the two differ.
        storage: The storage's own account.
        routing: What the balancer did with the requests.
    """

    servers: dict[str, dict[str, float]] = Field(default_factory=dict)
    expected: dict[str, dict[str, float]] = Field(default_factory=dict)
    unchecked: list[str] = Field(default_factory=list)
    findings: list[str] = Field(default_factory=list)
    storage: dict[str, Any] = Field(default_factory=dict)
    routing: dict[str, Any] = Field(default_factory=dict)


class Facts(_Lenient):
    """What is read of a `run.json`.

    Args:
        label: The tier.
        tier: Its name in the configuration.
        comparability: What must be equal for a comparison.
        versions: Of what was tested.
        settings: The plan of the load.
        commands: By component.
        boot_s: Seconds until the servers were ready.
        estimates: Figures.
        faults: Why no verdict may rest on it.
        suspicions: What makes its times doubtful.
        engine_lacks: What an older engine did not tell.
        proof: Where the KV came from.
        load: Clock and counters.
        environment: Of the processes.
        canary: Readings around the boot (s).
        balancer: What stood in front of the servers, and what it cost.
    """

    label: str
    tier: str = ""
    comparability: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    commands: dict[str, list[str]] = Field(default_factory=dict)
    boot_s: float | None = None
    estimates: dict[str, float] = Field(default_factory=dict)
    faults: list[str] = Field(default_factory=list)
    suspicions: list[str] = Field(default_factory=list)
    engine_lacks: list[str] = Field(default_factory=list)
    proof: ProofFacts = Field(default_factory=ProofFacts)
    load: LoadFacts = Field(default_factory=LoadFacts)
    environment: Any = None
    canary: dict[str, float] = Field(default_factory=dict)
    balancer: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """One load of one boot.

    Args:
        folder: Where it left its files.
        label: The tier, with the arm of an A/B.
        context_tokens: Length of the user context.
        facts: Of its `run.json`.
        rows: Of its `requests.parquet`; empty where that is missing.
        gpus: Samples of its boot's GPUs in the time of this load; empty where there are none.
        probes: Of its boot's `probes.json`; empty where that is missing.
        alone: Whether the report is of this session only, whose name its files then need not bear.
    """

    folder: Path
    label: str
    context_tokens: int
    facts: Facts
    rows: pd.DataFrame
    gpus: pd.DataFrame = field(default_factory=pd.DataFrame)
    probes: dict[str, Any] = field(default_factory=dict)
    alone: bool = False

    @property
    def session(self) -> Path:
        """The folder of the session."""
        return self.folder.parents[2]

    @property
    def place(self) -> str:
        """The folder as the report names it: session where there are several, tier, boot, context."""
        return "/".join(self.folder.parts[-3 if self.alone else -4 :])

    @property
    def boot(self) -> str:
        """The same without the context."""
        return self.place.rpartition("/")[0]

    @property
    def facts_file(self) -> str:
        """Name of the file with the facts."""
        return f"{self.place}/run.json"

    @property
    def rows_file(self) -> str:
        """Name of the file with the rows."""
        return f"{self.place}/{_ROWS}"

    @property
    def probes_file(self) -> str:
        """Name of the file with the probes."""
        return f"{self.boot}/{_PROBES}"

    @property
    def gpus_file(self) -> str:
        """Name of the file with the samples of GPUs."""
        return f"{self.boot}/{_GPUS}"

    @property
    def cell(self) -> str:
        """Tier and context in words."""
        return f"{self.label} at {self.context_tokens}"

    @property
    def valid(self) -> bool:
        """Whether a figure may rest on it."""
        return not self.facts.faults

    @property
    def measured(self) -> dict[str, Tokens]:
        """Prompt tokens by server."""
        return {name: _tokens(each) for name, each in self.facts.proof.servers.items()}

    @property
    def expected(self) -> dict[str, Tokens]:
        """Prompt tokens by server that an LRU hierarchy gives."""
        return {name: _tokens(each) for name, each in self.facts.proof.expected.items()}

    @cached_property
    def answered(self) -> pd.DataFrame:
        """Rows of requests that were answered well, with `ttft_s`."""
        if self.rows.empty:
            return self.rows.assign(ttft_s=pd.Series(dtype="float64"))
        done = self.rows[(self.rows["status"] == "ok") & self.rows["first_token_s"].notna()]
        return done.assign(ttft_s=done["first_token_s"] - done["actual_start_s"]).dropna(subset=["ttft_s"])


def read_loads(measured: pd.DataFrame, *, facts_only: bool = False) -> tuple[list[Load], list[str]]:
    """Return the loads that a table of runs is of, in its order, and a line for each file that could not be read.

    Args:
        measured: Of `series.read`.
        facts_only: Leave rows, samples and probes unread.
    """
    loads, lines = [], []
    alone = len({Path(str(source)).absolute().parents[3] for source in measured["source"]}) == 1 and not facts_only
    for source, label, context in zip(measured["source"], measured["label"], measured["context_tokens"], strict=True):
        path = Path(str(source)).absolute()
        try:
            facts = Facts.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
            lines.append(f"{path}: {why}")
            continue
        if facts_only:
            loads.append(Load(path.parent, str(label), int(context), facts, pd.DataFrame()))
            continue
        rows, problems = _rows(path.with_name(_ROWS))
        lines += problems
        boot = path.parents[1]
        loads.append(
            Load(
                path.parent,
                str(label),
                int(context),
                facts,
                rows,
                _gpus(boot / _GPUS, int(context)),
                _probes(boot),
                alone,
            )
        )
    return loads, lines


def last_of_cells(loads: Iterable[Load]) -> list[Load]:
    """Return the last valid load of each tier and context, the last of all where none is valid, in order."""
    found: dict[tuple[str, int], Load] = {}
    for load in loads:
        key = (load.label, load.context_tokens)
        if key not in found or load.valid or not found[key].valid:
            found[key] = load
    order = list(dict.fromkeys(label for label, _ in found))
    return sorted(found.values(), key=lambda each: (order.index(each.label), each.context_tokens))


def _rows(path: Path) -> tuple[pd.DataFrame, list[str]]:
    columns = ["user", "round", "status", "actual_start_s", "first_token_s", "last_token_s", "prompt_tokens",
               "generated_tokens", "cached_tokens", "server", "residual_s", "error"]  # fmt: skip
    try:
        rows = table.read(path)
        return rows[columns + [c for c in ("server_queue_s", "server_ttft_s", "due_s") if c in rows]], []
    except (OSError, ValueError, KeyError, ResultsError) as error:
        return pd.DataFrame(columns=columns), [f"{path}: requests cannot be read: {error!s:.200}"]


def _gpus(path: Path, context_tokens: int) -> pd.DataFrame:
    try:
        found = pd.read_parquet(path)
        return found[(found["context_tokens"] == context_tokens) & found["since_start_s"].notna()]
    except (OSError, ValueError, KeyError):
        return pd.DataFrame()


def _probes(boot: Path) -> dict[str, Any]:
    try:
        found = json.loads((boot / _PROBES).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _tokens(found: dict[str, float]) -> Tokens:
    known = Tokens.__dataclass_fields__
    return Tokens(**{name: value for name, value in found.items() if name in known})

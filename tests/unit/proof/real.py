"""Counters and requests of real runs (profile cpu-tiny), as the tests read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pytest_kvcache.load import records
from pytest_kvcache.proof.expected_hits import Hierarchy, OracleRequest
from pytest_kvcache.proof.ledger import Ledger, build_ledger
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.telemetry.cache_sizes import kv_bytes_per_token
from pytest_kvcache.telemetry.counters import growth, ranks_as_one
from pytest_kvcache.workload.schedule import steady

FOLDER = Path(__file__).parents[1] / "data" / "ledger"
#: LMCache inside vLLM.
INSIDE = ("inside-cpu-3500", "inside-s3-3500", "inside-pnfs-3500", "inside-pnfs-3500-tp2")
WORKING = ("gpu-1000", "gpu-3500", "pnfs-1000", "pnfs-3500", "pnfs-3500-boot", *INSIDE)
#: A pair whose connector was loaded and never asked LMCache anything; every answer arrived.
IDLE = "pnfs-3500-idle"
CHUNK, L1_TOKENS = 128, 0.5e9 / 4096


@dataclass
class Run:
    """One run.

    Args:
        before: Counters by component.
        after: Likewise.
        rows: A row a request.
        facts: The whole file.
    """

    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]
    rows: pd.DataFrame
    facts: Mapping[str, Any]

    @property
    def inside(self) -> bool:
        """Whether LMCache ran inside vLLM."""
        return "lmcache:num_hit_tokens_total" in self.after.get("lmcache-0", {})

    @property
    def ledger(self) -> Ledger:
        """Its ledger."""
        size = kv_bytes_per_token(ranks_as_one(self.after), chunk_tokens=CHUNK)
        return build_ledger(self.grown, chunk_tokens=CHUNK, kv_bytes_per_token=size)

    @property
    def grown(self) -> dict[str, dict[str, float]]:
        """By what its counters grew."""
        return growth(ranks_as_one(self.before), ranks_as_one(self.after))

    def add(self, component: str, **grown: float) -> None:
        """Let counters of a component have grown by more; `__` stands for a label `reason`."""
        for name, value in grown.items():
            base, _, reason = name.partition("__")
            key = f'{base}{{reason="{reason}"}}' if reason else base
            self.after[component][key] = self.after[component].get(key, 0.0) + value

    def unsplit(self) -> Run:
        """Have it be one of LMCache 0.4.7 to 0.5.4, which count neither levels of hits nor lookups; return it."""
        for reading in (self.before, self.after):
            for counters in reading.values():
                gone = ("lmcache_mp_lookup_hit_l1", "lmcache_mp_lookup_hit_l2", "lmcache_mp_lookups", "vllm:lmcache_mp")
                for key in [key for key in counters if key.startswith(gone)]:
                    del counters[key]
        return self

    def asks(self) -> list[OracleRequest]:
        """Return its requests, those before the clock among them."""
        w, rows = self.facts["workload"], self.rows
        first = w["shared_prompt_tokens"] + w["context_tokens"][0] + w["question_tokens"]
        before = list(
            steady(
                users=w["users"],
                rounds=w["rounds"],
                qps=w["qps"],
                duration_s=w["duration_s"],
                first_user=self.facts["first_user"],
                before=True,
            )
        )
        turn = [rows["server"][1], rows["server"][0]]
        step = w["answer_tokens"] + w["question_tokens"]
        asks = [
            OracleRequest(
                due.user, first + (due.round - 1) * step, w["answer_tokens"], turn[(len(before) - 1 - i) % 2], False
            )
            for i, due in enumerate(before)
        ]
        measured = zip(rows["user"], rows["prompt_tokens"], rows["generated_tokens"], rows["server"], strict=True)
        return asks + [OracleRequest(int(u), int(p), int(g), s) for u, p, g, s in measured]

    def caches(self, claim: Claim) -> Hierarchy:
        """Return the caches of the profile."""
        shared = self.facts["workload"]["shared_prompt_tokens"]
        return Hierarchy(claim, 128, 41, CHUNK, L1_TOKENS, shared, inside=self.inside)


def load(name: str) -> Run:
    """Return a run by the name of its file."""
    facts = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    rows = pd.DataFrame(facts["rows"])
    integers = ("intended_prompt_tokens", "prompt_tokens", "generated_tokens", "cached_tokens")
    rows = rows.astype(dict.fromkeys(integers, "Int64"))
    assert (rows["status"] == records.OK).all()
    return Run(facts["counters_before"], facts["counters_after"], rows, facts)


def claim_of(name: str) -> Claim:
    """Return what the tier of a run claims."""
    return Claim.DEVICE if name.startswith("gpu") else Claim.L1 if "-cpu-" in name else Claim.L2

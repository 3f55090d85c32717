"""What a run leaves at a size: rows, counters, report; synthetic values, written and read by the code of a run."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.load import records
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.report import series
from pytest_kvcache.report.html import document
from pytest_kvcache.scaling.apart import Took, apart
from pytest_kvcache.scaling.point import Point
from pytest_kvcache.scaling.stub import metrics_page, stub_server
from pytest_kvcache.telemetry.prometheus import parse, scrape_all

#: Time of a decoded token (s), so that gaps of the synthetic stamps are those of a real engine.
_ITL_S = 0.012


def synthetic_rows(point: Point, count: int) -> Iterator[RequestRecord]:
    """Yield `count` rows as a load of a size leaves them: times are drawn, and nothing was measured.

    Args:
        point: The size.
        count: How many.
    """
    drawn = random.Random(0)  # noqa: S311 - reproducible, not secret
    for number in range(count):
        start_s = number / point.qps
        sent_s = start_s + drawn.expovariate(5000.0)
        first_s = sent_s + 0.05 + drawn.expovariate(8.0)
        at_s, times = first_s, []
        for _ in range(point.answer_tokens):
            times.append(at_s)
            at_s += _ITL_S + drawn.expovariate(2000.0)
        place, asked = number % point.users, number // point.users
        question = asked % point.rounds
        prompt = point.shared_tokens + point.context_tokens + 32 + question * (point.answer_tokens + 32)
        yield RequestRecord(
            user=1 + place + point.users * (asked // point.rounds),
            round=question + 1,
            intended_start_s=start_s,
            due_s=start_s,
            actual_start_s=sent_s,
            first_token_s=first_s,
            last_token_s=times[-1],
            intended_prompt_tokens=prompt,
            intended_generated_tokens=point.answer_tokens,
            prompt_tokens=prompt,
            generated_tokens=point.answer_tokens,
            cached_tokens=prompt - prompt % 256 - 256,
            status=records.OK,
            server=f"vllm-{number % point.servers}",
            server_queue_s=drawn.expovariate(500.0),
            server_ttft_s=first_s - sent_s,
            residual_s=drawn.expovariate(800.0),
            token_times_s=times,
        )


@dataclass(frozen=True)
class Rows:
    """What a table of requests takes.

    Args:
        count: Of rows.
        file_bytes: Of `requests.parquet`.
        saved_s: Time to write it.
    """

    count: int
    file_bytes: int
    saved_s: float


def rows_cost(point: Point, count: int) -> Took[Rows]:
    """Return what a table of so many rows of a size takes: it is made, written and thrown away."""
    return apart(_save, point, count)


def _save(point: Point, count: int) -> Rows:
    made = list(synthetic_rows(point, count))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.parquet"
        began_s = time.monotonic()
        records.save(made, path)
        return Rows(count, path.stat().st_size, time.monotonic() - began_s)


@dataclass(frozen=True)
class Scraped:
    """What reading the counters of all servers once takes.

    Args:
        read_s: Time.
        page_bytes: Of all pages.
        kept_bytes: Of what is kept of them, as JSON.
    """

    read_s: float
    page_bytes: int
    kept_bytes: int


def scrape_cost(servers: int) -> Scraped:
    """Return what reading the counters of so many servers takes; their pages are synthetic."""
    with stub_server(chunks=1, gap_s=0.0, prompt_tokens=1) as url:
        urls = {f"vllm-{number}": f"{url}/metrics?{number}" for number in range(servers)}
        scrape_all({"vllm-0": url})  # the first request imports and connects
        began_s = time.monotonic()
        found = scrape_all(urls)
        read_s = time.monotonic() - began_s
    return Scraped(read_s, servers * len(metrics_page(0)), len(json.dumps(found)))


@dataclass(frozen=True)
class Report:
    """What a report takes.

    Args:
        page_bytes: Of the HTML.
        facts_bytes: Of `run.json`.
    """

    page_bytes: int
    facts_bytes: int


def report_cost(point: Point, count: int) -> Took[Report]:
    """Return what the report of a load of so many rows takes: a synthetic run is made, reported and thrown away."""
    return apart(_report, point, count)


def _report(point: Point, count: int) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        load = run / "pnfs" / "boot-1" / f"context-{point.context_tokens}"
        load.mkdir(parents=True)
        records.save(synthetic_rows(point, count), load / "requests.parquet")
        facts = load / "run.json"
        facts.write_text(json.dumps(_facts(point)), encoding="utf-8")
        page = document.write(series.read([run]), run / document.NAME, still=False)
        return Report(page.stat().st_size, facts.stat().st_size)


def _facts(point: Point) -> dict[str, object]:
    """Return a `run.json` of a size; its figures are made up, and no report of them is shown to anybody."""
    names = [f"vllm-{number}" for number in range(point.servers)]
    keys = {"hardware.gpus": f"{point.servers} x synthetic", "hardware.cores": "1", "hardware.cpu": "synthetic"}
    keys |= {"serving.model": "synthetic", "workload.context_tokens": str(point.context_tokens)}
    keys |= {"workload.users": str(point.users), "workload.qps": f"{point.qps:g}"}
    counters = {name: parse(metrics_page(0).decode()) for name in names}
    tokens = {"computed": 600.0, "device": 100.0, "l1": 100.0, "l2": 200.0}
    argv = ["vllm", "serve", "synthetic", *(f"--some-option-{n} value" for n in range(20))]
    return {
        "label": "pnfs (synthetic)",
        "tier": "pnfs",
        "comparability": keys,
        "commands": dict.fromkeys(names, argv),
        "boot_s": 100.0,
        "faults": [],
        "estimates": {"tokens_per_s": 1000.0, "ttft_mean_s": 0.2, "decode_tokens_per_s": 80.0, "part_prefill_s": 0.1},
        "proof": {"servers": dict.fromkeys(names, tokens), "expected": dict.fromkeys(names, tokens)},
        "load": {"started_at": 1.0, "counters_before": counters, "counters_after": counters},
    }

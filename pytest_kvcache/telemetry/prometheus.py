"""Counters of vLLM and LMCache from their Prometheus endpoints."""

from __future__ import annotations

from collections.abc import Mapping

import requests
from prometheus_client.parser import text_string_to_metric_families

#: When a server's process was started (s since the epoch), a gauge of every Prometheus client.
STARTED = "process_start_time_seconds"
_PREFIXES = ("vllm:", "lmcache", STARTED)
#: Labels that are the same for every sample of one server.
_DROPPED = frozenset({"engine", "model_name"})

Counters = dict[str, float]


def parse(text: str) -> Counters:
    """Return counters, gauges and the sums and counts of histograms of vLLM and LMCache by name and labels.

    `STARTED` is among them, where the server says it. A key reads
    `vllm:prompt_tokens_by_source_total{source="local_compute"}`. Samples that differ only in labels that do not matter
    here are added up.
    """
    counters: Counters = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(_PREFIXES) and not sample.name.endswith(("_bucket", "_created")):
                key = _key(sample.name, sample.labels)
                counters[key] = counters.get(key, 0.0) + sample.value
    return counters


def scrape(url: str, *, timeout_s: float = 5.0) -> Counters:
    """Return the counters at `url`; of a server that does not answer, none."""
    try:
        with requests.Session() as session:
            session.trust_env = False
            response = session.get(url, timeout=timeout_s)
            response.raise_for_status()
    except requests.RequestException:
        return {}
    return parse(response.text)


def scrape_all(urls: Mapping[str, str]) -> dict[str, Counters]:
    """Return the counters of every component by its name."""
    return {name: scrape(url) for name, url in urls.items()}


def _key(name: str, labels: Mapping[str, str]) -> str:
    kept = {k: v for k, v in sorted(labels.items()) if v and k not in _DROPPED and not k.startswith("otel_")}
    if not kept:
        return name
    return name + "{" + ",".join(f'{k}="{v}"' for k, v in kept.items()) + "}"

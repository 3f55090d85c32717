"""Counters of vLLM and LMCache from their Prometheus endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import requests
from prometheus_client.parser import text_string_to_metric_families

from pytest_kvcache.endpoint.certificates import verification
from pytest_kvcache.telemetry import internal_api

#: When a server's process was started (s since the epoch), a gauge of every Prometheus client.
STARTED = "process_start_time_seconds"
#: The only counter of an endpoint that answered with something else than Prometheus text.
FOREIGN = "no_prometheus_text"
_PREFIXES = ("vllm:", "lmcache", STARTED)
#: Labels that are the same for every sample of one server.
_DROPPED = frozenset({"engine", "model_name"})
#: Prefix of the counters of an LMCache inside vLLM, and the labels that are the same for every sample of one of its
#: ranks, since each rank is a component of its own.
_INSIDE, _DROPPED_INSIDE = "lmcache:", frozenset({"role", "served_model_name", "worker_id"})

#: So many endpoints are read at a time.
_AT_ONCE = 16

Counters = dict[str, float]


def parse(text: str) -> Counters:
    """Return counters, gauges and the sums and counts of histograms of vLLM and LMCache by name and labels.

    `STARTED` is among them, where the server has it. A key reads
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
    """Return the counters at `url`: none where no server answers, `FOREIGN` alone where the answer cannot be read.

    Such an answer is for instance a page of HTML, from a proxy or from another program that took the port.

    An LMCache inside vLLM is first asked to hand over what it has counted (`internal_api.count_now`).
    """
    try:
        own_socket = internal_api.is_internal(url) and not internal_api.is_relayed(url)
        text = _inside(url) if own_socket else _get(url, timeout_s)
    except requests.RequestException:
        return {}
    try:
        return parse(text)
    except (ValueError, KeyError, IndexError):  # what the parser raises at any other text
        return {FOREIGN: 1.0}


def scrape_all(urls: Mapping[str, str]) -> dict[str, Counters]:
    """Return the counters of every component by its name.

    The counters of an LMCache inside vLLM are taken from its internal API server, which is a component of its own.
    vLLM's own endpoint has them too: they are left out there, or they would be counted twice. So they are where a vLLM
    and the LMCache inside it have one endpoint, which is read once for both.
    """
    # Side by side: counters of many servers are of one moment, and one that does not answer holds up no other. But an
    # LMCache inside vLLM that hands over its sums makes files that vLLM's endpoint reads. If it is asked meanwhile, it
    # may find an empty one, and answers with an error (struct.error in prometheus_client.mmap_dict).
    wanted = list(dict.fromkeys(urls.values()))
    pages: dict[str, Counters] = {}
    with ThreadPoolExecutor(max(1, min(len(wanted), _AT_ONCE))) as threads:
        for inside in (True, False):
            group = [url for url in wanted if internal_api.is_internal(url) is inside]
            pages |= zip(group, threads.map(scrape, group), strict=True)
    found = {name: pages[url] for name, url in urls.items()}
    shared = len(pages) < len(urls)
    if shared:
        found = {name: _inside_only(own) if name.startswith("lmcache") else own for name, own in found.items()}
    if not shared and not any(map(internal_api.is_internal, urls.values())):
        return found
    return {name: _engine_only(own) if name.startswith("vllm") else own for name, own in found.items()}


def _engine_only(counters: Counters) -> Counters:
    return {key: value for key, value in counters.items() if not key.startswith(_INSIDE)}


def _inside_only(counters: Counters) -> Counters:
    return {key: value for key, value in counters.items() if not key.startswith("vllm:")}


def _get(url: str, timeout_s: float) -> str:
    with requests.Session() as session:
        session.trust_env = False
        session.verify = verification(url)
        response = session.get(url, timeout=timeout_s)
    response.raise_for_status()
    return response.text


def _inside(url: str) -> str:
    internal_api.count_now(url)
    return internal_api.read_metrics(url)


def _key(name: str, labels: Mapping[str, str]) -> str:
    dropped = _DROPPED | _DROPPED_INSIDE if name.startswith(_INSIDE) else _DROPPED
    kept = {k: v for k, v in sorted(labels.items()) if v and k not in dropped and not k.startswith("otel_")}
    if not kept:
        return name
    return name + "{" + ",".join(f'{k}="{v}"' for k, v in kept.items()) + "}"

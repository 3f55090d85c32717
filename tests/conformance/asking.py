"""Asks a pair, as the checks of the conformance suite need it."""

from __future__ import annotations

import json
import statistics
import time

import requests

from pytest_kvcache.serving.pair import ServingPair

#: Small requests whose TTFT is taken, with the first, which is thrown away.
_SMALL_REQUESTS = 12


def ask(pair: ServingPair, text: str) -> requests.Response:
    """Send a prompt to the balancer; its answer is streamed."""
    standing = pair.plan.standing
    authorization = standing.authorization if standing is not None else f"Bearer {pair.plan.api_key}"
    body = {"model": pair.model, "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    with requests.Session() as session:
        session.trust_env = False
        return session.post(
            f"{pair.base_url}/chat/completions",
            json={**body, **pair.extra_body, "stream": True},
            headers={"Authorization": authorization},
            stream=True,
            timeout=60,
        )


def ttft_s(pair: ServingPair) -> float:
    """Return the median TTFT (s) of small requests after each other through the balancer; the first warms up."""
    return statistics.median([_ttft_s(pair, number) for number in range(_SMALL_REQUESTS)][1:])


def _ttft_s(pair: ServingPair, number: int) -> float:
    """Return the time from sending a small request to the first text of its answer (s)."""
    began_s = time.perf_counter()
    with ask(pair, f"small request {number}") as answer:
        for line in answer.iter_lines(chunk_size=1):
            if line.startswith(b"data: {") and any(
                (choice.get("delta") or {}).get("content") for choice in json.loads(line[6:])["choices"]
            ):
                return time.perf_counter() - began_s
    raise AssertionError(f"an answer of {pair.base_url} had no text")


def status(url: str) -> int:
    """Return the status with which a URL answers, 0 where nothing does."""
    try:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(url, timeout=5).status_code
    except requests.RequestException:
        return 0

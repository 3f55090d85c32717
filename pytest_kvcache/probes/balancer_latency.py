"""What the balancer itself costs: small requests through it, each beside one straight to the server that answered.

A prompt of a few words and an answer of one token take a server a few milliseconds, which both requests of a pair have.
What is left between them is the balancer: its connection, its reading of the request, its choice. The prompts are too
short for any cache, and each names a user of its own, so that no policy sends them all to one server.
"""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from scipy import special

from pytest_kvcache.endpoint.address import below
from pytest_kvcache.endpoint.certificates import tls_context
from pytest_kvcache.errors import RunError

#: Pairs of requests for each server, and those before them that are thrown away: connections are opened in them.
PAIRS_PER_SERVER, _THROWN_AWAY = 12, 2
_TIMEOUT_S = 20.0
#: How long a balancer that runs already may take to see that the servers are there (s).
SEEN_S = 60.0
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class BalancerLatency:
    """The time that a balancer adds to a small request (s).

    Args:
        median_s: Median of the differences of pairs.
        low_s: Lower end of the median's interval (95 %, by ranks).
        high_s: Upper end of it.
        direct_s: Median of the requests that went straight to a server.
        pairs: Number of pairs.
        servers: Number of pairs by the server that answered.
    """

    median_s: float
    low_s: float
    high_s: float
    direct_s: float
    pairs: int
    servers: Mapping[str, int]

    def facts(self) -> dict[str, Any]:
        """Return it for `run.json`."""
        return {**vars(self), "servers": dict(self.servers)}

    @property
    def line(self) -> str:
        """It in words for people."""
        return (
            f"{self.median_s * 1e3:+.2f} ms for a small request ({self.low_s * 1e3:+.2f} to "
            f"{self.high_s * 1e3:+.2f}, median of {self.pairs} pairs; without it {self.direct_s * 1e3:.1f} ms)"
        )


def latency(through: list[float], direct: list[float], servers: Mapping[str, int]) -> BalancerLatency:
    """Return the latency of pairs of times (s), with the interval of the median by ranks (binomial, no assumption).

    Args:
        through: Times of the requests through the balancer.
        direct: Time of the request beside each.
        servers: Number of pairs by the server that answered.
    """
    differences = sorted(a - b for a, b in zip(through, direct, strict=True))
    count = len(differences)
    tail = (1 - _CONFIDENCE) / 2
    low = max(0, next(rank for rank in range(count + 1) if special.bdtr(rank, count, 0.5) >= tail) - 1)
    return BalancerLatency(
        median_s=statistics.median(differences),
        low_s=differences[low],
        high_s=differences[count - 1 - low],
        direct_s=statistics.median(direct),
        pairs=count,
        servers=dict(servers),
    )


def measure(
    base_url: str,
    server_urls: Mapping[str, str],
    *,
    model: str,
    extra_body: Mapping[str, Any],
    api_key: str = "",
    seen_s: float = 0.0,
    now: Callable[[], float] = time.monotonic,
) -> BalancerLatency:
    """Return what the balancer at `base_url` costs.

    Args:
        base_url: URL of the balancer with /v1.
        server_urls: Base URL of each server by name, without /v1.
        model: The model name that requests carry.
        extra_body: More fields of each request.
        api_key: Key that the servers ask for, "" for none.
        seen_s: How long the balancer may refuse, since it has not seen yet that the servers are there.
        now: The clock.

    Raises:
        RunError: The balancer does not answer, or leads to servers that are not those of the pair.
    """
    direct = {name: _Caller(f"{url}/v1", model, extra_body, api_key) for name, url in server_urls.items()}
    front = _Caller(base_url, model, extra_body, api_key)
    through_s: list[float] = []
    direct_s: list[float] = []
    servers: dict[str, int] = {}
    deadline = now() + seen_s
    number, wanted = 0, _THROWN_AWAY + PAIRS_PER_SERVER * len(direct)
    try:
        while number < wanted:
            try:
                took_s, server = front.ask(number)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if number or now() > deadline:
                    raise RunError(f"does not answer: {error}", where=base_url, todo=_TODO) from None
                time.sleep(0.2)
                continue
            if server not in direct:
                named = f"a server that calls itself {server!r}" if server else "a server that does not give its name"
                raise RunError(f"{named} answered, and none of the pair", where=base_url, todo=_TODO)
            straight_s, _ = direct[server].ask(number)
            number += 1
            if number > _THROWN_AWAY:
                through_s.append(took_s)
                direct_s.append(straight_s)
                servers[server] = servers.get(server, 0) + 1
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RunError(f"a server did not answer beside the balancer: {error}", where=base_url) from None
    finally:
        for caller in (front, *direct.values()):
            caller.close()
    return latency(through_s, direct_s, servers)


_TODO = "docs/balancers.md: does the balancer know the ports of the servers?"


class _Caller:
    """A kept connection that sends small requests."""

    def __init__(self, base_url: str, model: str, extra_body: Mapping[str, Any], api_key: str) -> None:
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        url = urlsplit(below(base_url, "chat/completions"))
        host, self._path = url.hostname or "", url.path
        if url.scheme == "https":
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, url.port, timeout=_TIMEOUT_S, context=tls_context()
            )
        else:
            self._connection = http.client.HTTPConnection(host, url.port, timeout=_TIMEOUT_S)
        self._body = {
            "model": model,
            "max_tokens": 1,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **extra_body,
        }

    def ask(self, number: int) -> tuple[float, str]:
        """Send a small request; return the time to the end of its answer (s), and the server that answered.

        Raises:
            OSError: The connection failed.
            HTTPException: The answer is no HTTP.
            ValueError: The answer is not what it should be.
        """
        body = {**self._body, "messages": [{"role": "user", "content": f"small request {number}"}]}
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "x-user-id": f"latency-{number}", **self._headers}
        try:
            if self._connection.sock is None:
                self._connection.connect()  # which turns Nagle's algorithm off
            began_s = time.perf_counter()
            self._connection.request("POST", self._path, data, headers)
            answer = self._connection.getresponse()
            text = answer.read()
            took_s = time.perf_counter() - began_s
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        if answer.status != 200:
            self._connection.close()
            raise ValueError(f"HTTP {answer.status}: {text[:200].decode(errors='replace')}")
        return took_s, _server(text)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _server(text: bytes) -> str:
    """Return the name that a server gives itself in the role of its first event, "" where it gives none."""
    for line in text.splitlines():
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:]).get("choices") or ():
                role = (choice.get("delta") or {}).get("role") or ""
                if "@" in role:
                    return str(role.partition("@")[2])
    return ""

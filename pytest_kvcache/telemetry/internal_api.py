"""The internal API server of an LMCache that runs inside vLLM: one for each worker, on a Unix socket.

LMCache counts in vLLM's worker processes and hands its sums to Prometheus once in 10 s. The internal API server of a
worker shows the counters of its own process. Some of them vLLM's own endpoint cannot show: `process_start_time_seconds`
and the gauges that are computed when they are read. `/run_script` runs a few lines in the worker, which hand the sums
to Prometheus at once, so that no reading has to wait for the next 10 s.

Source: LMCache 0.3.9 to 0.5.6 (`lmcache/v1/internal_api_server`). From 0.5.6 on `/run_script` has to be allowed by
name; the socket lies in a folder that only the run's user can enter.
"""

from __future__ import annotations

import contextlib
import socket
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import quote, unquote

import requests

_SCHEME = "http+unix://"
#: Part of the path of an address that a relay of another machine answers (`serving/nodes/relay.py`).
RELAYED = "/lmcache-inside/"
#: LMCache numbers its internal API servers: the scheduler's is 0, a worker's is 1 + its rank.
_FIRST_WORKER = 1
#: Script that runs in the worker. `get_stats_and_clear` and Prometheus' counters are safe beside LMCache's thread.
_COUNT_NOW = """
from lmcache.observability import LMCStatsMonitor, PrometheusLogger
metadata = app.state.lmcache_adapter.lmcache_engine.metadata
PrometheusLogger.GetOrCreate(metadata).log_prometheus(LMCStatsMonitor.GetOrCreate().get_stats_and_clear())
result = "counted"
"""
_TIMEOUT_S = 5.0


def environment(prefix: Path, ranks: int) -> dict[str, str]:
    """Return the variables that make LMCache serve its API; the YAML of the tier stays as it is.

    Args:
        prefix: Prefix of the sockets' paths, in a folder that nobody else can enter.
        ranks: Number of workers of the vLLM server.
    """
    workers = range(_FIRST_WORKER, _FIRST_WORKER + ranks)
    return {
        "LMCACHE_INTERNAL_API_SERVER_ENABLED": "true",
        "LMCACHE_INTERNAL_API_SERVER_SOCKET_PATH_PREFIX": str(prefix),
        "LMCACHE_INTERNAL_API_SERVER_PORT_START": "0",
        "LMCACHE_INTERNAL_API_SERVER_INCLUDE_INDEX_LIST": ",".join(map(str, workers)),
        "LMCACHE_RUN_SCRIPT_API_ENABLED": "true",
        "LMCACHE_SCRIPT_ALLOWED_IMPORTS": "lmcache.observability",
    }


def metrics_url(prefix: Path, rank: int) -> str:
    """Return the address of a worker's counters, as `telemetry.prometheus.scrape` takes it.

    Args:
        prefix: Prefix of the sockets' paths, as in `environment`.
        rank: Rank of the worker.
    """
    return f"{_SCHEME}{quote(f'{prefix}_{_FIRST_WORKER + rank}', safe='')}/metrics"


def is_internal(url: str) -> bool:
    """Whether `url` is an address of an internal API server, or of a relay to one."""
    return url.startswith(_SCHEME) or is_relayed(url)


def is_relayed(url: str) -> bool:
    """Whether `url` leads to an internal API server of another machine, whose sockets only that machine can open."""
    return RELAYED in url


def count_now(url: str) -> None:
    """Have a worker's LMCache hand what it has counted to Prometheus.

    Args:
        url: Address of the worker's counters (`metrics_url`).

    Raises:
        requests.RequestException: The worker does not answer, or it refuses.
    """
    said = _ask("POST", url, "/run_script", files={"script": ("count_now.py", _COUNT_NOW)})
    if said != "counted":
        raise requests.RequestException(f"LMCache did not count: {said[:200]}")


def read_metrics(url: str) -> str:
    """Return the counters of a worker, as Prometheus' text.

    Args:
        url: Address of the worker's counters (`metrics_url`).

    Raises:
        requests.RequestException: The worker does not answer.
    """
    return _ask("GET", url, "/metrics")


def clear_l1(url: str) -> None:
    """Empty the CPU RAM (L1) of a worker's LMCache; what is in the shared storage stays.

    Args:
        url: Address of the worker's counters (`metrics_url`).

    Raises:
        requests.RequestException: The worker does not answer, or it refuses.
    """
    _ask("DELETE", url, "/cache/clear?locations=LocalCPUBackend")


class _UnixConnection(HTTPConnection):
    """HTTP on a Unix socket; the Docker SDK has such an adapter, which leaves its socket open where nobody listens."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ask(method: str, url: str, path: str, *, files: dict[str, tuple[str, str]] | None = None) -> str:
    request = requests.Request(method, "http://localhost", files=files).prepare()
    where = unquote(url.removeprefix(_SCHEME).partition("/")[0])
    with contextlib.closing(_UnixConnection(where)) as connection:
        try:
            connection.request(method, path, body=request.body, headers=dict(request.headers))
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            raise requests.ConnectionError(f"{where}: {error}") from None
    if response.status != HTTPStatus.OK:
        raise requests.HTTPError(f"HTTP {response.status} of {path} at {where}: {text[:200]}")
    return text

"""Checks of the load nodes that a session's load is spread over: reached, same key and code, clocks known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from pytest_kvcache.check import Check, Finding
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.load.nodes import coordinator
from pytest_kvcache.load.nodes.messages import KEY_ENV, read_node_key
from pytest_kvcache.workload.base import Workload


def checks(addresses: Sequence[str], workload: Workload, environ: Mapping[str, str]) -> list[Check]:
    """Return a check of each load node.

    Args:
        addresses: Of the nodes (HOST:PORT).
        workload: Says how well clocks must be known.
        environ: Has the key of the nodes.
    """
    return [
        Check(f"load node {address}", partial(_look, address, workload, environ), blocking=True)
        for address in addresses
    ]


def _look(address: str, workload: Workload, environ: Mapping[str, str]) -> Finding:
    try:
        key = read_node_key(KEY_ENV, environ)
        with coordinator.connected([address], key, budget_s=workload.clock_error_budget_s) as (link,):
            reading = link.readings[0]
    except KvCacheError as error:
        return Finding("fail", error.what, error.todo)
    return Finding(
        "pass",
        f"{link.identity.get('host')}, {link.identity.get('processors')} processors, its clock known to "
        f"{reading.uncertainty_ns / 1e6:.2g} ms",
    )

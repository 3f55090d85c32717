"""The process that sends a load: what it is started with, how long it is waited for, and its end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pytest_kvcache.load.nodes.messages import KEY_ENV
from pytest_kvcache.load.plan import API_KEY, LoadPlan
from pytest_kvcache.load.stopping import StopRule
from pytest_kvcache.runs import signals
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle
from pytest_kvcache.serving.launchers.process import ProcessStarter
from pytest_kvcache.serving.pair import ServingPair
from pytest_kvcache.workload.base import Workload

ROWS, LOAD = "requests.parquet", "load.json"
#: How often a load says how far it is (s), unless it is told otherwise.
REPORT_S = LoadPlan.model_fields["report_s"].default
_POLL_S = 0.2
#: More than the load's longest line of progress.
_TAIL_BYTES = 4096
_SAVE_S = 6.0


def load_plan(
    pair: ServingPair,
    workload: Workload,
    *,
    context_tokens: int,
    first_user: int,
    folder: Path,
    salt: str,
    nodes: tuple[str, ...],
    stop: StopRule | None = None,
    report_s: int = REPORT_S,
) -> LoadPlan:
    """Return the plan of a load on a pair, with all that follows from the pair.

    Args:
        pair: The running one.
        workload: What is sent.
        context_tokens: One of the workload's lengths.
        first_user: Users are numbered from the next one on.
        folder: Folder of the rows and of the load's own facts.
        salt: Of every prompt, "" for none.
        nodes: Addresses of the load nodes where the pair has none of its own; none where this machine sends.
        stop: When the run may end before its time.
        report_s: How often progress is told (s).
    """
    nodes = pair.plan.load_nodes or nodes
    return LoadPlan(
        base_url=pair.base_url,
        turn_urls=pair.plan.turn_urls,
        names_users=pair.plan.balancer.promises == "user",
        model=pair.model,
        workload=workload,
        context_tokens=context_tokens,
        first_user=first_user,
        extra_body=pair.plan.extra_body,
        tokenizer_url=pair.plan.tokenizer_url,
        metrics_urls=pair.plan.metrics_urls,
        api_key_env=_key_variable(pair),
        salt=salt,
        counters_lag_s=pair.plan.counters_lag_s,
        nodes=nodes,
        node_key_env=KEY_ENV if nodes else "",
        stop=stop,
        rows=folder / ROWS,
        summary=folder / LOAD,
        report_s=report_s,
    )


def load_component(pair: ServingPair, plan: LoadPlan, plan_file: Path) -> Component:
    """Return the process that carries out a plan.

    Args:
        pair: The running one, which may ask for a key.
        plan: The plan.
        plan_file: The file that it was written to.
    """
    # A key's variable may be one that processes of a run do not inherit.
    keys = {name: os.environ[name] for name in (plan.api_key_env, plan.node_key_env) if name in os.environ}
    if pair.plan.api_key:
        keys[API_KEY] = pair.plan.api_key
    if pair.plan.load_nodes:
        keys[plan.node_key_env] = pair.plan.load_node_key
    return Component(
        name="load",
        argv=(sys.executable, "-m", "pytest_kvcache.load.worker", str(plan_file)),
        stage="load",
        secret_env=keys,
    )


def wait_for(handle: Handle, pair: ServingPair, told: Callable[[str], None]) -> None:
    """Wait for the end of a load process.

    Args:
        handle: The process.
        pair: The pair that it sends to.
        told: Gets what the load said last, again and again.

    Raises:
        BootError: A component of the pair died.
    """
    while handle.exit_code() is None:
        pair.check_alive()
        if line := _last_line(handle.log):
            told(line)
        time.sleep(_POLL_S)
    pair.check_alive_now()  # a storage server that died with the last request has no counters that would be missed


def end(handle: Handle, launcher: ProcessStarter) -> None:
    """Let a load process that still runs save its rows, then end it."""
    with signals.deferred():
        if handle.exit_code() is None:
            launcher.signal(handle, signal.SIGTERM)
            deadline = time.monotonic() + _SAVE_S
            while handle.exit_code() is None and time.monotonic() < deadline:
                time.sleep(_POLL_S / 4)
        launcher.stop([handle])


def _key_variable(pair: ServingPair) -> str:
    """Return the variable with which the load process is given the pair's key, "" where the pair asks for none."""
    if pair.plan.api_key:
        return API_KEY
    return pair.plan.standing.settings.api_key_env if pair.plan.standing is not None else ""


def _last_line(log: Path) -> str:
    """Return the last whole line of a log, "" where there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = stream.read().split(b"\n")[:-1]
    except OSError:
        return ""
    return lines[-1].decode(errors="replace") if lines else ""

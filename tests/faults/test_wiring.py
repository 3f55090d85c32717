"""Servers that are put together wrongly, and answer every request all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.power.overlay import make
from tests.faults.programs import AGAIN, shim
from tests.faults.sessions import assert_invalid, component, prepare, run
from tests.projects import Project, Session

pytestmark = pytest.mark.engine


def test_the_connector_is_absent(project: Project, kvcache_home: Path, real_engine: Path, tmp_path: Path) -> None:
    """Without its connector vLLM answers everything; the tier's claim does not hold, and the cause is named."""
    prepare(project, make(tmp_path / "engine", real_engine, off=True))
    ended = run(project, kvcache_home, "--tier", "pnfs")
    print(ended.output)
    assert_invalid(
        ended,
        "(0 were handed to it); vLLM gave it nothing: the connector is not loaded or does nothing, look at --kv-trans",
        "no prompt token came from the shared storage: LMCache was never asked",
    )
    assert (ended.rows("pnfs")["status"] == "ok").all()


def test_the_router_sends_everything_to_one_server(
    project: Project, kvcache_home: Path, real_engine: Path, tmp_path: Path
) -> None:
    """A server that gets nothing is named, and where everything went."""
    prepare(project, shim(tmp_path / "engine", real_engine, "vllm-router", "one-server"))
    ended = run(project, kvcache_home, "--tier", "pnfs")
    print(ended.output)
    assert_invalid(ended, "vllm-1 got not one prompt token", "the router sends everything elsewhere; read its log")
    assert set(ended.rows("pnfs")["server"]) == {"vllm-0"}


def test_an_lmcache_server_is_restarted(
    project: Project, kvcache_home: Path, real_engine: Path, tmp_path: Path
) -> None:
    """Counters that begin again at zero are noticed, though the component lives on under its supervisor."""
    # The server takes half a minute to be back on a slow machine, and is to be back before counters are read.
    prepare(project, shim(tmp_path / "engine", real_engine, "lmcache", "restarts"), duration_s=60)

    def breaks(session: Session) -> None:
        component(session, "lmcache-0")[0].send_signal(AGAIN)

    ended = run(project, kvcache_home, "--tier", "pnfs", breaks=breaks)
    print(ended.output)
    assert_invalid(ended, "invalid: boot 1: lmcache-0: its process is not the one of before: it was started anew")
    assert not ended.rows("pnfs").empty

"""What a boot does while it waits."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.pair import boot
from pytest_kvcache.serving.plan import ServingPlan
from tests.stubs.web import Server

LOOKS = 12


class Starting:
    """A server that hangs up, says that it is not ready, and is ready at its last look."""

    def __init__(self) -> None:
        self.looks = 0

    def refused(self, _: object) -> tuple[int, str] | None:
        """Count, and say that it is not ready."""
        self.looks += 1
        if self.looks < LOOKS and self.looks % 3 == 0:
            raise ConnectionResetError
        return (503, "starting") if self.looks < LOOKS else None


@pytest.fixture
def starting() -> Iterator[tuple[Starting, str]]:
    """A server that starts slowly, and its page that says so."""
    state = Starting()
    with Server(0, {"/health": lambda: "ready"}, {}, refused=state.refused) as here:
        thread = threading.Thread(target=here.serve_forever)
        thread.start()
        yield state, f"http://127.0.0.1:{here.server_address[1]}/health"
        here.shutdown()
        thread.join()


@dataclass
class Started:
    """A component that runs on."""

    component: Component
    log: Path

    def exit_code(self) -> None:
        """Run on."""


class Starter:
    """Starts nothing."""

    def start(self, component: Component, logs: Path) -> Started:
        """Return its handle."""
        return Started(component, logs / "log")

    def stop(self, _: object) -> None:
        """End nothing."""


def test_no_finalizer_runs_between_two_looks(
    starting: tuple[Starting, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a signal's handler raises while servers start is not lost, as it is inside a finalizer."""
    server, url = starting
    ran: list[int] = []
    finalizer = weakref.finalize.__call__

    def noted(self: Any, _: object = None) -> object:
        ran.append(server.looks)
        return finalizer(self)

    monkeypatch.setattr(weakref.finalize, "__call__", noted)
    component = Component("vllm-0", ("x",), "servers", ready_url=url)
    pair = boot(ServingPlan(TierPlan("gpu"), (component,), "", "", {}, {}), Starter(), tmp_path, timeout_s=20)
    assert [handle.component.name for handle in pair.handles] == ["vllm-0"]
    assert server.looks == LOOKS
    assert set(ran) <= {LOOKS}

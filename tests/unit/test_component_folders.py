"""Folders that a component has for itself: LMCache's counters and sockets, where it runs inside vLLM."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.process import ProcessStarter


@pytest.mark.parametrize("boots", [1, 2])
def test_a_folder_of_its_own_for_each_start(tmp_path: Path, kvcache_home: Path, boots: int) -> None:
    """It is empty when the program starts, nobody else can enter it, and it is gone when the program has ended."""
    session = RunSession(kvcache_home, tmp_path / "runs", print)
    launcher = ProcessStarter(session)
    own = session.scratch / "lmcache-0"
    code = f"import os, time; print(os.listdir({str(own)!r})); open({str(own / 'x.db')!r}, 'w'); time.sleep(60)"
    component = Component("vllm-0", (sys.executable, "-c", code), "servers", folders=(own,))
    try:
        for boot in range(boots):
            handle = launcher.start(component, tmp_path / f"boot-{boot}")
            deadline = time.monotonic() + 30
            while not (own / "x.db").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert (own / "x.db").exists()
            assert own.stat().st_mode & 0o077 == 0
            launcher.stop([handle])
            assert not own.exists()
    finally:
        session.close()

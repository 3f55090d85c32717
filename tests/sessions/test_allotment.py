"""GPUs that the caller may not use end a session before its boot."""

from __future__ import annotations

import pytest

from tests.projects import Project, configure, run
from tests.stubs.engine import toml


def test_a_session_stops_before_the_boot(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few GPUs fail every test with what is needed and what there is, and nothing was started."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,4")
    configure(project, toml().replace("gpus_per_server = 0", "gpus_per_server = 1"))
    result = run(project, "--tier", "gpu")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*2 GPUs are needed*, 0 allotted by CUDA_VISIBLE_DEVICES=4,4 (4 is there twice*"])
    assert list((project.path / ".kvcache").rglob("vllm-*.log")) == []

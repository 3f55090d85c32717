"""What a session says of an environment that it withholds from the engine."""

from __future__ import annotations

import json

import pytest

from tests.projects import Project, configure, run, run_folder
from tests.stubs.engine import toml


def test_a_session_says_it_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of engines that are withheld are one line of the output; run.json has names, and values are nowhere."""
    for name, value in {"LMCACHE_CHUNK_SIZE": "640064", "VLLM_PORT": "5", "HF_TOKEN": "hf_s3cret"}.items():
        monkeypatch.setenv(name, value)
    configure(project, toml())
    result = run(project, "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(passed=3)
    told = [line for line in result.outlines if "withheld" in line]
    assert len(told) == 1
    assert "LMCACHE_CHUNK_SIZE (set chunk_tokens), VLLM_PORT" in told[0]
    kept = json.loads((run_folder(project) / "gpu" / "boot-1" / "context-50" / "run.json").read_text())["environment"]
    assert {"LMCACHE_CHUNK_SIZE", "VLLM_PORT"} <= set(kept["withheld"])
    assert "HF_TOKEN" in kept["passed"]
    texts = [path.read_text(errors="replace") for path in project.path.rglob("*") if path.is_file()]
    assert not any("s3cret" in text or "640064" in text for text in texts)

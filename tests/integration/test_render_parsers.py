"""Every command and file that a run would use is accepted by the parsers of the programs themselves."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.serving.render import render
from pytest_kvcache.tiers import catalogue

SCRIPT = Path(__file__).with_name("parse_commands.py")
MODES = ("in-process", "mp")


def rendered() -> list[dict[str, Any]]:
    """Return the components of every built-in profile, in both modes of LMCache, on every built-in tier."""
    known = catalogue.load(None)
    return [
        {**component, "key": f"{profile.name} {mode} {tier.name} {component['name']}"}
        for profile in known.profiles.values()
        for mode in MODES
        for tier in known.tiers.values()
        for component in json.loads(
            render(profile.model_copy(update={"lmcache_mode": mode}), tier, None, {}, as_json=True)
        )["components"]
    ]


def parse(engine: Path, components: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """Have the engine environment parse components."""
    argv = [str(engine / "bin" / "python"), str(SCRIPT)]
    return subprocess.run(argv, input=json.dumps(components), capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def understood(real_engine: Path) -> dict[str, Any]:
    """What the parsers made of all rendered components."""
    done = parse(real_engine, rendered())
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.partition("RESULT ")[2])
    return result


def test_every_command_is_accepted(understood: dict[str, Any]) -> None:
    """No vLLM, LMCache or router command line of any profile, mode and tier is refused."""
    expected = {c["key"] for c in rendered() if c["name"] != "s3"}
    assert expected <= understood.keys()


def test_vllm_gets_the_article_s_model_and_connector(understood: dict[str, Any]) -> None:
    """VLLM reads the model, and the connector of the mode; on the gpu tier there is none."""
    assert understood["qwen3-8b in-process pnfs vllm-0"]["model"] == "Qwen/Qwen3-8B"
    assert understood["qwen3-8b in-process pnfs vllm-0"]["connector"] == "LMCacheConnectorV1"
    assert understood["qwen3-8b in-process gpu vllm-1"]["connector"] is None
    mp = understood["qwen3-8b mp pnfs vllm-1"]
    assert mp["connector"] == "LMCacheMPConnector"
    assert mp["extra"]["lmcache.mp.port"] == understood["qwen3-8b mp pnfs lmcache-1"]["port"]


def test_lmcache_reads_the_article_s_yaml(understood: dict[str, Any]) -> None:
    """LMCache's own reader finds the article's values in the in-process YAML, and those of its siblings."""
    pnfs = understood["qwen3-8b in-process pnfs vllm-0 yaml"]
    assert (pnfs["local_cpu"], pnfs["max_local_cpu_size"], pnfs["save_decode_cache"]) == (True, 100, True)
    assert pnfs["remote_storage_plugins"] == ["fs"]
    assert pnfs["extra"] == {
        "remote_storage_plugin.fs.base_path": "/mnt/kvcache/kvcache-RUN-pnfs",
        "fs_connector_relative_tmp_dir": ".tmp-0",
    }
    assert pnfs["internal_api_server_enabled"] is pnfs["run_script_api_enabled"] is True
    assert pnfs["internal_api_server_socket_path_prefix"] == "/tmp/kvc-RUN/lmcache-0/api"
    assert pnfs["internal_api_server_include_index_list"] == [1]
    assert pnfs["script_allowed_imports"] == ["lmcache.observability"]
    cpu = understood["qwen3-8b in-process cpu vllm-0 yaml"]
    assert (cpu["local_cpu"], cpu["max_local_cpu_size"], cpu["remote_storage_plugins"]) == (True, 100, None)
    s3 = understood["qwen3-8b in-process s3 vllm-0 yaml"]
    assert s3["remote_url"].startswith("s3://127.0.0.1:")
    assert s3["extra"]["s3_region"] == "us-east-1"


def test_lmcache_reads_the_l2_adapters(understood: dict[str, Any]) -> None:
    """LMCache's server builds the file system and S3 adapters from the tiers' JSON."""
    assert "FSL2AdapterConfig" in understood["qwen3-8b mp pnfs lmcache-0"]["storage"]
    assert "S3L2AdapterConfig" in understood["qwen3-8b mp s3 lmcache-0"]["storage"]
    assert "adapters=[]" in understood["qwen3-8b mp cpu lmcache-0"]["storage"]


@pytest.mark.parametrize("program", ["vllm-0", "lmcache-0", "router"])
def test_a_wrong_argument_would_be_noticed(real_engine: Path, program: str) -> None:
    """The same check refuses a command with an argument that the program does not know."""
    component = next(c for c in rendered() if c["key"] == f"qwen3-8b mp pnfs {program}")
    done = parse(real_engine, [{**component, "argv": [*component["argv"], "--no-such-argument", "1"]}])
    assert done.returncode != 0
    assert "no-such-argument" in done.stderr

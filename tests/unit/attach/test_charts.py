"""Values files of the article's four scenarios: keys and types that the charts know, and settings of a run's own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.validators import validator_for

from pytest_kvcache.cli import main
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.charts.values import FORMATS, render_values
from pytest_kvcache.tiers import catalogue

S3 = b'[tiers.s3]\nkind = "s3"\nendpoint = "https://s3.example.org"\nbucket = "kv"\n'
CATALOGUE = catalogue.parse(S3, source=None, where="kvcache.toml")
SCENARIOS = ("gpu", "cpu", "s3", "pnfs")
IMAGE = "registry.example.org:5000/lmcache/vllm-openai:v0.32.0"
#: Folder with the charts' own schemas, as `production-stack.schema.json` and `llm-d.schema.json`: their
#: `values.schema.json` of vllm-project/production-stack (helm/) and llm-d-incubation/llm-d-modelservice
#: (charts/llm-d-modelservice/), both under Apache-2.0. They are not part of this repository.
SCHEMAS = os.environ.get("KVCACHE_CHART_SCHEMAS", "")
#: Keys of the charts that we use, with the types that the charts want: read in production-stack a6c01db (chart 0.1.12)
#: and llm-d-modelservice 3051935 (v0.4.12). Whatever is below a type is Kubernetes' own.
KEYS: dict[str, dict[str, Any]] = {
    "production-stack": {
        "servingEngineSpec": {
            "enableEngine": bool,
            "containerPort": int,
            "modelSpec": [
                {
                    "name": str, "repository": str, "tag": str, "modelURL": str, "replicaCount": int,
                    "requestCPU": int, "requestMemory": str, "requestGPU": int, "podLabels": dict, "env": list,
                    "extraVolumes": list, "extraVolumeMounts": list,
                    "lmcacheConfig": {"enabled": bool},
                    "vllmConfig": {
                        "enablePrefixCaching": bool, "dtype": str, "maxModelLen": int, "tensorParallelSize": int,
                        "extraArgs": list,
                    },
                }
            ],
        },
        "routerSpec": {"enableRouter": bool, "routingLogic": str},
        "extraObjects": list,
    },
    "llm-d": {
        "multinode": bool,
        "modelArtifacts": {"name": str, "uri": str, "labels": dict},
        "accelerator": {"type": str},
        "routing": {"servicePort": int, "proxy": {"enabled": bool}},
        "decode": {
            "create": bool, "replicas": int, "parallelism": {"tensor": int}, "containers": list, "volumes": list,
        },
        "prefill": {"create": bool},
        "extraObjects": list,
    },
}  # fmt: skip


def rendered(form: str, tier: str, profile: str = "qwen3-8b") -> dict[str, Any]:
    """Return the values of a scenario."""
    text = render_values(
        form, CATALOGUE.profiles[profile], CATALOGUE.tiers[tier], IMAGE, {"AWS_ACCESS_KEY_ID": "AKIAX"}
    )
    assert "AKIAX" not in text
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def unknown(value: object, known: Any, path: str = "") -> list[str]:
    """Return the keys of `value` that are not known, or not of the type that is wanted."""
    if isinstance(known, dict):
        if not isinstance(value, Mapping):
            return [path]
        return [line for key, each in value.items() for line in unknown(each, known.get(key), f"{path}.{key}")]
    if isinstance(known, list):
        return [line for each in value for line in unknown(each, known[0], path)] if isinstance(value, list) else [path]
    return [] if known is not None and type(value) is known else [path]


def container(form: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the options, variables and mounts of a server, in either chart's place for them."""
    if form == "llm-d":
        found = values["decode"]["containers"][0]
        return {"args": found["args"], "env": found["env"], "mounts": found.get("volumeMounts", [])}
    model = values["servingEngineSpec"]["modelSpec"][0]
    mounts = model.get("extraVolumeMounts", [])
    return {"args": model["vllmConfig"]["extraArgs"], "env": model["env"], "mounts": mounts}


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("tier", SCENARIOS)
def test_only_keys_that_the_chart_has(form: str, tier: str) -> None:
    """Every key of a values file is one that the chart reads, and of its type: Helm ignores others without a word."""
    assert unknown(rendered(form, tier), KEYS[form]) == []


def test_a_key_that_a_chart_lacks_is_noticed() -> None:
    """The table of keys refuses a misspelled key and a wrong type."""
    values = rendered("production-stack", "pnfs")
    values["servingEngineSpec"]["modelSpec"][0]["replicas"] = 2
    values["routerSpec"]["enableRouter"] = "yes"
    assert unknown(values, KEYS["production-stack"]) == [
        ".servingEngineSpec.modelSpec.replicas",
        ".routerSpec.enableRouter",
    ]


@pytest.mark.skipif(not SCHEMAS, reason="KVCACHE_CHART_SCHEMAS names no folder with the charts' schemas")
@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("tier", SCENARIOS)
def test_the_charts_own_schema(form: str, tier: str) -> None:
    """The chart's own schema accepts the values file."""
    schema = json.loads((Path(SCHEMAS) / f"{form}.schema.json").read_text())
    validator_for(schema)(schema).validate(rendered(form, tier))


@pytest.mark.parametrize("form", list(FORMATS))
def test_the_files_say_what_a_run_would_serve(form: str) -> None:
    """LMCache's file is the article's, servers share a seed and name their pods, and the folder is mounted."""
    values = rendered(form, "pnfs")
    engine = container(form, values)
    env = {each["name"]: each.get("value") for each in engine["env"]}
    assert engine["args"][engine["args"].index("--response-role") + 1] == "assistant@$(POD_NAME)"
    assert "--enable-prompt-tokens-details" in engine["args"]
    assert not {"--port", "--host", "--served-model-name"} & set(engine["args"])
    assert env["PYTHONHASHSEED"] == "0"
    assert json.loads(env["LMCACHE_EXTRA_CONFIG"])["fs_connector_relative_tmp_dir"].endswith("$(POD_NAME)")
    (config,) = values["extraObjects"]
    path = "/mnt/kvcache/kvcache-deployment-pnfs"
    assert yaml.safe_load(config["data"]["lmcache.yaml"]) == {
        "local_cpu": True,
        "max_local_cpu_size": 100,
        "save_decode_cache": True,
        "remote_storage_plugins": ["fs"],
        "extra_config": {"remote_storage_plugin.fs.base_path": path},
    }
    assert path in [each["mountPath"] for each in engine["mounts"]]


@pytest.mark.parametrize("form", list(FORMATS))
def test_vllm_alone_has_no_lmcache(form: str) -> None:
    """The scenario without offloading has no connector, no file and no variable of LMCache."""
    assert "lmcache" not in json.dumps(rendered(form, "gpu")).lower().replace("lmcache/vllm-openai", "")


@pytest.mark.parametrize("form", list(FORMATS))
def test_keys_of_a_bucket_come_from_a_secret(form: str) -> None:
    """Credentials are referred to by the name of a secret, and are in no file."""
    env = {each["name"]: each for each in container(form, rendered(form, "s3"))["env"]}
    assert env["AWS_ACCESS_KEY_ID"]["valueFrom"] == {"secretKeyRef": {"name": "kvcache-s3", "key": "AWS_ACCESS_KEY_ID"}}


@pytest.mark.parametrize(
    ("profile", "tier", "image", "expected"),
    [
        ("cpu-tiny", "gpu", IMAGE, "is a folder of this machine, and a cluster finds models by name"),
        ("qwen3-8b", "pnfs", "lmcache/vllm-openai", "has no tag: what is measured must be known"),
        ("qwen3-8b", "pnfs", "", "has no tag"),
        ("qwen3-8b", "pnfs", "host:5000/vllm", "has no tag"),
    ],
)
def test_what_cannot_be_deployed(profile: str, tier: str, image: str, expected: str) -> None:
    """A model or an image that a cluster cannot find is refused, with what to do."""
    with pytest.raises(ConfigError, match=expected):
        render_values("llm-d", CATALOGUE.profiles[profile], CATALOGUE.tiers[tier], image, {})


def test_a_storage_of_the_run_cannot_be_deployed() -> None:
    """The S3 server that a run would start is no storage of a deployment."""
    known = catalogue.load(None)
    with pytest.raises(ConfigError, match=r"tiers\.s3: .* would be started by the run"):
        render_values("llm-d", known.profiles["qwen3-8b"], known.tiers["s3"], IMAGE, {})


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`render --format` prints the file, with how to install it and the table that attaches to it."""
    argv = ["render", "--kv-profile", "qwen3-8b", "--tier", "pnfs", "--format", "production-stack", "--image", IMAGE]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["routerSpec"]["routingLogic"] == "roundrobin"
    table = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    attach = "\n".join(table[table.index("[attach.pnfs]") :])
    found = catalogue.parse(attach.encode(), source=None, where="the comment").attach["pnfs"]
    assert found.kubernetes is not None
    labels = yaml.safe_load(text)["servingEngineSpec"]["modelSpec"][0]["podLabels"]
    assert found.kubernetes.selector == ",".join(f"{key}={value}" for key, value in labels.items())

"""Values files for two charts: `vllm-stack` of vLLM's production-stack, and `llm-d-modelservice` of llm-d."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from pytest_kvcache.config.attach import Attach
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.charts.engine import CPUS, SECRET, TIER_LABEL, ClusterEngine, cluster_engine
from pytest_kvcache.serving.tier import Tier

_PORT = 8000


def production_stack(engine: ClusterEngine, image: str) -> dict[str, Any]:
    """Return the values for production-stack's chart: engines, and its router in round robin.

    Args:
        engine: What each server gets.
        image: Image with vLLM and LMCache, REPOSITORY:TAG.
    """
    profile = engine.profile
    repository, tag = _image(image)
    args, own = _taken_out(engine.args)
    volumes, mounts = engine.volumes()
    model: dict[str, Any] = {
        "name": engine.name,
        "repository": repository,
        "tag": tag,
        "modelURL": profile.model,
        "replicaCount": profile.servers,
        "requestCPU": CPUS,
        "requestMemory": f"{engine.memory_gib}Gi",
        "requestGPU": profile.gpus_per_server,
        "podLabels": {TIER_LABEL: engine.tier},
        # The chart turns prefix caching off unless it is asked for.
        "vllmConfig": {"enablePrefixCaching": True, **own, "extraArgs": args},
        "env": engine.env_list(),
    }
    if engine.config:
        model["lmcacheConfig"] = {"enabled": True}
    if volumes:
        model |= {"extraVolumes": volumes, "extraVolumeMounts": mounts}
    values: dict[str, Any] = {
        "servingEngineSpec": {"enableEngine": True, "containerPort": _PORT, "modelSpec": [model]},
        "routerSpec": {"enableRouter": True, "routingLogic": "roundrobin"},
    }
    if objects := engine.objects():
        values["extraObjects"] = objects
    return values


def llm_d(engine: ClusterEngine, image: str) -> dict[str, Any]:
    """Return the values for llm-d's chart of model servers; gateway and endpoint picker are charts of their own.

    Args:
        engine: What each server gets.
        image: Image with vLLM and LMCache, REPOSITORY:TAG.
    """
    profile = engine.profile
    volumes, mounts = engine.volumes()
    args = [*_without(engine.args, "--tensor-parallel-size")]
    if engine.config:
        args += ["--kv-transfer-config", '{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}']
    if profile.gpus_per_server > 1:  # ranks of one server talk through shared memory, of which a pod has 64 MB
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - in the pod
    container = {
        "name": "vllm",
        "image": image,
        "modelCommand": "vllmServe",
        "args": args,
        "env": engine.env_list(),
        "ports": [{"containerPort": _PORT, "name": "metrics", "protocol": "TCP"}],
        "resources": {
            "requests": {"cpu": str(CPUS), "memory": f"{engine.memory_gib}Gi"},
            "limits": {"memory": f"{engine.memory_gib}Gi"},
        },
        **({"volumeMounts": mounts} if mounts else {}),
    }
    labels = {"llm-d.ai/inference-serving": "true", "llm-d.ai/model": engine.name, TIER_LABEL: engine.tier}
    values: dict[str, Any] = {
        "multinode": False,
        "modelArtifacts": {"name": profile.served_name, "uri": f"hf://{profile.model}", "labels": labels},
        "accelerator": {"type": "nvidia" if profile.gpus_per_server else "cpu"},
        # Without separate prefill servers nothing is to be handed over.
        "routing": {"servicePort": _PORT, "proxy": {"enabled": False}},
        "decode": {
            "create": True,
            "replicas": profile.servers,
            "parallelism": {"tensor": max(1, profile.gpus_per_server)},
            "containers": [container],
            **({"volumes": volumes} if volumes else {}),
        },
        "prefill": {"create": False},
    }
    if objects := engine.objects():
        values["extraObjects"] = objects
    return values


#: Charts by the name that `render --format` takes.
FORMATS: Mapping[str, Callable[[ClusterEngine, str], dict[str, Any]]] = {
    "production-stack": production_stack,
    "llm-d": llm_d,
}
_INSTALL = {
    "production-stack": (
        "helm repo add vllm https://vllm-project.github.io/production-stack",
        "helm install kvcache vllm/vllm-stack -f THIS-FILE",
    ),
    "llm-d": (
        "helm repo add llm-d-modelservice https://llm-d-incubation.github.io/llm-d-modelservice/",
        "helm install kvcache llm-d-modelservice/llm-d-modelservice -f THIS-FILE",
    ),
}
_ROUTER = {"production-stack": "http://kvcache-router-service/v1", "llm-d": "http://GATEWAY/v1"}


def render_values(form: str, profile: Profile, tier: Tier, image: str, environ: Mapping[str, str]) -> str:
    """Return a values file, with what installs it and what attaches to it as comments before it.

    Args:
        form: One of `FORMATS`.
        profile: Profile to serve.
        tier: Tier to serve with.
        image: Image with vLLM and LMCache, REPOSITORY:TAG.
        environ: Environment whose credentials a tier may ask for; none of them is shown.

    Raises:
        ConfigError: Profile and tier cannot be deployed so, or the image has no tag.
    """
    engine = cluster_engine(profile, tier, environ)
    values = FORMATS[form](engine, image)
    _image(image)
    lines = [f"profile {profile.name}, tier {tier.name}, for the chart of {form}", *_INSTALL[form]]
    if any(isinstance(value, Mapping) and "secretKeyRef" in value for value in engine.env.values()):
        lines.append(f"keys of the storage: kubectl create secret generic {SECRET} --from-env-file=FILE")
    if engine.folder is not None:
        lines.append(f"{engine.folder} is a folder of each node: the file system must be mounted on all of them")
    lines += [f"memory and processors (requests) are guesses: {engine.memory_gib} GiB have room for L1 and the model"]
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=120)
    return "\n".join([*(f"# {line}" for line in lines), "#", *_table(form, engine), text.rstrip("\n")])


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as such a text, so that a person can read it."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _table(form: str, engine: ClusterEngine) -> list[str]:
    """Return the table of kvcache.toml that attaches to the deployment, as comments."""
    attach = Attach.model_validate(
        {"tier": engine.tier, "base_url": _ROUTER[form], "kubernetes": {"selector": f"{TIER_LABEL}={engine.tier}"}}
    )
    wanted = attach.kubernetes
    if wanted is None:
        raise AssertionError("it was given")
    return [
        "# kvcache.toml, to measure it where the pods are reached (pytest --kv-launcher attach):",
        f"# [attach.{engine.tier}]",
        f'# base_url = "{attach.base_url}"',
        f"# [attach.{engine.tier}.kubernetes]",
        f'# selector = "{wanted.selector}"',
        f"# port = {_PORT}",
    ]


def _image(image: str) -> tuple[str, str]:
    repository, colon, tag = image.rpartition(":")
    if not colon or "/" in tag or not tag or not repository:
        raise ConfigError(
            f"{image!r} has no tag: what is measured must be known",
            where="--image",
            todo="name REPOSITORY:TAG, such as lmcache/vllm-openai:VERSION",
        )
    return repository, tag


def _taken_out(args: tuple[str, ...]) -> tuple[list[str], dict[str, Any]]:
    """Return options without those that production-stack's chart has keys for, and these keys."""
    keys: dict[str, tuple[str, Callable[[str], Any]]] = {
        "--dtype": ("dtype", str),
        "--max-model-len": ("maxModelLen", int),
        "--tensor-parallel-size": ("tensorParallelSize", int),
    }
    own: dict[str, Any] = {}
    for option, (key, made) in keys.items():
        if option in args:
            own[key] = made(args[args.index(option) + 1])
    return _without(args, *keys), own


def _without(args: tuple[str, ...], *options: str) -> list[str]:
    found, skip = [], False
    for word in args:
        if not skip and word not in options:
            found.append(word)
        skip = word in options
    return found

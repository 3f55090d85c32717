"""What each vLLM server of a cluster gets of a profile and a tier, whichever chart it is deployed by."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kvcache.config.profile import TINY_MODEL, Profile
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving import lmcache
from pytest_kvcache.serving.offload import Offload, PerServer, TierPlan
from pytest_kvcache.serving.places import Place
from pytest_kvcache.serving.tier import Tier, TierContext
from pytest_kvcache.serving.vllm import vllm_server

#: Names of what the files define in the cluster.
CONFIG_MAP, CONFIG_FILE, SECRET = "kvcache-lmcache", "lmcache.yaml", "kvcache-s3"
CONFIG_FOLDER = "/etc/kvcache"
#: Label by which `[attach.TIER.kubernetes]` finds the pods of a tier.
TIER_LABEL = "kvcache-tier"
#: Stands for the run's id in the name of the tier's folder, since no run owns it.
_RUN = "deployment"
#: Options that the chart itself sets, each with a value, and the one that names the server.
_SET_BY_CHART = frozenset({"--served-model-name", "--host", "--port", "--response-role"})
#: Room beside L1 for weights, activations and the process (GiB), and processors of a server: to be adapted.
_ROOM_GIB, CPUS = 32, 8


class _Programs:
    """An engine of which only options are taken: a current one."""

    @property
    def versions(self) -> Mapping[str, str]:
        return {}

    def vllm_launch(self, model: str) -> tuple[str, ...]:  # noqa: ARG002 - the chart names it
        return ()

    def program(self, name: str) -> str:
        return name


@dataclass(frozen=True)
class ClusterEngine:
    """One vLLM server of a deployment, in terms of Kubernetes.

    Args:
        profile: Profile that it serves.
        tier: Name of the tier.
        args: Options of vLLM beside model, name, host and port.
        env: Variables: a text, or the `valueFrom` of Kubernetes.
        config: Content of LMCache's YAML; "" for vLLM alone.
        folder: Folder of the shared storage on the node, which is mounted at the same path; None without one.
        memory_gib: Memory that the server asks for (GiB).
    """

    profile: Profile
    tier: str
    args: tuple[str, ...]
    env: Mapping[str, str | Mapping[str, Any]]
    config: str = ""
    folder: Path | None = None
    memory_gib: int = _ROOM_GIB

    @property
    def name(self) -> str:
        """Name of the model as a label: lower case, digits and dashes."""
        text = "".join(c if c.isalnum() else "-" for c in self.profile.served_name.rpartition("/")[2].lower())
        return text.strip("-")[:40]

    def env_list(self) -> list[dict[str, Any]]:
        """Return the variables as a container's `env`, with the pod's name first, which others refer to."""
        found: list[dict[str, Any]] = [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
        for name, value in self.env.items():
            found.append(
                {"name": name, "value": value} if isinstance(value, str) else {"name": name, "valueFrom": value}
            )
        return found

    def volumes(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return volumes and their mounts: LMCache's file, and the folder of the shared storage."""
        volumes: list[dict[str, Any]] = []
        mounts: list[dict[str, Any]] = []
        if self.config:
            volumes.append({"name": CONFIG_MAP, "configMap": {"name": CONFIG_MAP}})
            mounts.append({"name": CONFIG_MAP, "mountPath": CONFIG_FOLDER, "readOnly": True})
        if self.folder is not None:
            volumes.append({"name": "kvcache", "hostPath": {"path": str(self.folder), "type": "DirectoryOrCreate"}})
            mounts.append({"name": "kvcache", "mountPath": str(self.folder)})
        return volumes, mounts

    def objects(self) -> list[dict[str, Any]]:
        """Return more objects of the cluster: the map with LMCache's file."""
        if not self.config:
            return []
        meta = {"name": CONFIG_MAP, "labels": {TIER_LABEL: self.tier}}
        return [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {CONFIG_FILE: self.config}}]


def cluster_engine(profile: Profile, tier: Tier, environ: Mapping[str, str]) -> ClusterEngine:
    """Return what each server of a profile gets on a tier.

    Args:
        profile: Profile to serve.
        tier: Tier to serve with.
        environ: Environment whose credentials a tier may ask for; none of them is in the result.

    Raises:
        ConfigError: The two cannot be deployed so: a model or a storage that only a run makes, or LMCache beside vLLM.
    """
    where = f"profiles.{profile.name}"
    if profile.model == TINY_MODEL or Path(profile.model).is_dir():
        raise ConfigError(
            f"{profile.model} is a folder of this machine, and a cluster finds models by name",
            where=f"{where}.model",
            todo="take a profile with a name of Hugging Face, such as qwen3-8b",
        )
    plan = tier.plan(_context(profile, environ))
    if plan.storage:
        raise ConfigError(
            f"{plan.storage[0].name} would be started by the run, and a deployment needs a storage that stands",
            where=f"tiers.{tier.name}",
            todo="set endpoint and bucket of an S3 service",
        )
    if plan.offload is not None and profile.lmcache_mode != "in-process":
        raise ConfigError(
            "runs LMCache as a server beside each vLLM, and charts are rendered for LMCache inside vLLM",
            where=f"{where}.lmcache_mode",
            todo='set it to "in-process"',
        )
    offload = None if plan.offload is None else _named(plan.offload)
    env: dict[str, str | Mapping[str, Any]] = {**profile.env, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if offload is not None:
        env |= _lmcache_env(offload, plan)
    return ClusterEngine(
        profile=profile,
        tier=tier.name,
        args=(*_args(profile), "--response-role", "assistant@$(POD_NAME)"),
        env=env,
        config="" if offload is None else lmcache.in_process_yaml(profile, offload),
        folder=plan.folders[0] if plan.folders else None,
        memory_gib=_ROOM_GIB + (0 if offload is None else math.ceil(profile.l1_size_gb * profile.ranks)),
    )


def _context(profile: Profile, environ: Mapping[str, str]) -> TierContext:
    return TierContext(
        profile=profile,
        run_id=_RUN,
        scratch=Path("/tmp"),  # noqa: S108 - shown, not used
        storage_home=Path("/tmp"),  # noqa: S108 - shown, not used
        tool=Path,
        port=lambda: 0,
        environ={"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", **environ},
    )


def _args(profile: Profile) -> list[str]:
    place = Place(tools=_Programs(), model=profile.model, port=lambda: 0, scratch=Path("/tmp"))  # noqa: S108
    argv = vllm_server(
        place, index=0, profile=profile, port=0, connector=None, gpus=(), env={}, secret_env={}, files={}
    ).argv
    found, skip = [], False
    for word in argv:
        if not skip and word not in _SET_BY_CHART:
            found.append(word)
        skip = word in _SET_BY_CHART
    return found


def _lmcache_env(offload: Offload, plan: TierPlan) -> dict[str, str | Mapping[str, Any]]:
    found: dict[str, str | Mapping[str, Any]] = {
        "LMCACHE_CONFIG_FILE": f"{CONFIG_FOLDER}/{CONFIG_FILE}",
        # Without a common seed no server finds what another one stored.
        "PYTHONHASHSEED": "0",
        "LMCACHE_TRACK_USAGE": "false",
        # With it vLLM's endpoint has LMCache's counters.
        "PROMETHEUS_MULTIPROC_DIR": "/tmp",  # noqa: S108 - of the pod alone
    }
    if offload.engine_extra:
        extra = {**offload.engine_config.get("extra_config", {}), **offload.engine_extra}
        found["LMCACHE_EXTRA_CONFIG"] = json.dumps(extra)
    for name in sorted(plan.secret_env):
        found[name] = {"secretKeyRef": {"name": SECRET, "key": name}}
    return found


def _named(offload: Offload) -> Offload:
    """Return a configuration whose values of each server end with its pod's name, which Kubernetes fills in."""

    def filled(value: Any) -> Any:
        if isinstance(value, PerServer):
            return f"{value.prefix}$(POD_NAME)"
        return {k: filled(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    return Offload(None, filled(offload.engine_config), filled(offload.engine_extra))

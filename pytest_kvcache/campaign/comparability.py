"""What must be equal for two results to be comparable, and what is merely recorded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from types import MappingProxyType

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.verdict.metrics import OF_SLO


def comparability(
    profile: Profile,
    *,
    context_tokens: int,
    model_id: str,
    hardware: Mapping[str, str],
    storage: Mapping[str, str],
    launcher: str,
    balancer: Mapping[str, str] = MappingProxyType({}),
    image: str = "",
    deployed: bool = False,
    load_nodes: int = 0,
) -> dict[str, str]:
    """Return the comparability keys: hardware, model and serving, workload, tier storage, launcher.

    Args:
        profile: What was served and how.
        context_tokens: The context of the cell.
        model_id: The model, with a digest where it was made on the spot.
        hardware: Of the machine.
        storage: The tier's facts.
        launcher: How the components ran.
        balancer: Facts of the load balancer: kind and policy, version, template.
        image: Digest of the image that the profile names; "" where it names none, and the engine is what is tested.
        deployed: Whether the servers are a deployment's, of which the profile says nothing but the model, and what it
            needs for the proof.
        load_nodes: How many load nodes sent; 0 where the machine of the session did.
    """
    serving = profile.model_dump(
        exclude={
            "name",
            "description",
            "workload",
            "rules",
            "gates",
            "boot_timeout_s",
            "model",
            "balancer",
            "image",
            "ray",
        }
    )
    if deployed:
        serving = {key: serving[key] for key in ("lmcache_mode", "chunk_tokens")}
    judged = {metric.key for metric in profile.judged}
    return {
        **_prefixed("deployment" if deployed else "hardware", hardware),
        **_prefixed("storage", storage),
        **_prefixed("serving", {**serving, "model": model_id, "launcher": launcher, **balancer}),
        **({"serving.image": image} if image else {}),
        **({"load.nodes": str(load_nodes)} if load_nodes else {}),
        **_prefixed("workload", profile.workload.sent(context_tokens)),
        **({"gates.slo": profile.gates.slo.text} if profile.gates.slo is not None and judged & OF_SLO else {}),
    }


def machine_name(hardware: Mapping[str, str]) -> str:
    """Return a short file name for a machine: its GPUs or its processor, and a digest of all its facts.

    For a deployment, of which all that is known stands in the place of a machine, it is the deployment's name.
    """
    gpus = hardware.get("gpus", "none")
    if "deployment" in hardware:
        slug = re.sub(r"[^a-z0-9]+", "-", hardware["deployment"].lower()).strip("-")
        return f"attached-{slug}-{_digest({k: v for k, v in hardware.items() if k != 'servers'})}"
    what = gpus.split(",")[0] if gpus != "none" else f"{hardware['cpu']} {hardware['cores']} cores"
    slug = re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")
    return f"{slug}-{_digest(hardware)}"


def _digest(hardware: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(hardware), sort_keys=True).encode()).hexdigest()[:6]


def _prefixed(prefix: str, values: Mapping[str, object]) -> dict[str, str]:
    return {f"{prefix}.{k}": v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in values.items()}


def workload_hash(workload: Mapping[str, object]) -> str:
    """Return the SHA-256 (hex) of what is to be sent: equal exactly if the parameters are, in whatever order.

    Args:
        workload: Everything that decides the requests (`Workload.sent`). Values must be what JSON has.
    """
    text = json.dumps(dict(workload), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()

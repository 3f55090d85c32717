"""Checks of a deployment that stands: what a run needs of it, looked at before the load is sent."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import requests

from pytest_kvcache.check import Check, Finding
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.deployment import asking
from pytest_kvcache.deployment.standing import Standing
from pytest_kvcache.endpoint.address import below, without_version
from pytest_kvcache.endpoint.certificates import verification
from pytest_kvcache.errors import KvCacheError
from pytest_kvcache.redaction import redacted
from pytest_kvcache.telemetry.counters import total
from pytest_kvcache.telemetry.prometheus import FOREIGN, scrape_all

_PROMPTS = "vllm:prompt_tokens_total"
#: So long the counters are watched for traffic of others (s).
_WATCHED_S = 2.0
#: Words of a prompt that fills several blocks of any device cache, so that the second time some of it is cached.
_WORDS = 1500
_TIMEOUT_S = 60.0
_DETAILS = "start vLLM with --enable-prompt-tokens-details"


def checks(standing: Standing, profile: Profile, *, offloads: bool) -> list[Check]:
    """Return the checks of a deployment.

    Args:
        standing: The deployment.
        profile: What is to be served: its model, and in which mode LMCache runs.
        offloads: Whether the tier uses LMCache.
    """
    return [
        Check("router", _told(partial(router, standing, profile)), blocking=True),
        Check("servers", _told(partial(servers, standing, profile)), blocking=True),
        Check("counters", _told(partial(counters, standing, offloads=offloads)), blocking=True),
        Check("usage", _told(partial(usage, standing, profile))),
        Check("tokenizer", _told(partial(tokenizer, standing, profile)), blocking=profile.workload.needs_tokenizer),
        Check("other traffic", _told(partial(quiet, standing))),
    ]


def router(standing: Standing, profile: Profile) -> Finding:
    """Look at whether the router answers, and serves the profile's model."""
    found = asking.models(standing.base_url, authorization=standing.authorization, where="router")
    if profile.served_name not in found:
        known = ", ".join(found) or "none"
        return Finding(
            "fail",
            f"{standing.base_url} does not serve {profile.served_name}; it serves {known}",
            f"set profiles.{profile.name}.model to a name that is served",
        )
    return Finding("pass", f"{standing.base_url} serves {profile.served_name}")


def servers(standing: Standing, profile: Profile) -> Finding:
    """Look at whether each server answers, serves the model, and has the version of the others."""
    if not standing.server_urls:
        return Finding(
            "warn",
            "the servers behind the router are not named: no probe, no ledger, no sight of other traffic",
            "name them in [attach.TIER.servers], or find them with [attach.TIER.kubernetes]",
        )
    versions = {}
    for name, url in standing.server_urls.items():
        versions[name] = asking.version(url, authorization=standing.authorization, where=f"{name} ({url})")
        found = asking.models(f"{url}/v1", authorization=standing.authorization, where=f"{name} ({url})")
        if profile.served_name not in found:
            return Finding("fail", f"{name} does not serve {profile.served_name}, but {', '.join(found) or 'nothing'}")
    if len(set(versions.values())) > 1:
        each = ", ".join(f"{name} {version}" for name, version in versions.items())
        return Finding("fail", f"the servers have several versions of vLLM: {each}", "wait until the rollout is over")
    said = f"{len(versions)} servers, vLLM {next(iter(versions.values()))}"
    if len(versions) != profile.servers:
        return Finding("warn", f"{said}; the profile has {profile.servers}", f"set profiles.{profile.name}.servers")
    return Finding("pass", said)


def counters(standing: Standing, *, offloads: bool) -> Finding:
    """Look at whether the counters of each component are read, and are those of a vLLM or an LMCache."""
    if not standing.metrics_urls:
        return Finding("warn", "no counters are read: nothing proves where the KV came from", "name the servers")
    for name, own in scrape_all(standing.metrics_urls).items():
        url = standing.metrics_urls[name]
        if not own or FOREIGN in own:
            return Finding(
                "fail", f"{name}: {url} has no Prometheus text", "is it reached from here, and the right port?"
            )
        if name.startswith("vllm") and not any(key.startswith("vllm:") for key in own):
            return Finding("fail", f"{name}: {url} has no counter of vLLM", "that of another program was named")
    lmcaches = [name for name in standing.metrics_urls if name.startswith("lmcache")]
    if offloads and not lmcaches:
        return Finding(
            "fail",
            "no counters of an LMCache are read, and the tier is said to offload",
            'set lmcache_mode = "in-process" for LMCache inside vLLM, or name lmcache-0 in [attach.TIER.metrics]',
        )
    return Finding("pass", ", ".join(standing.metrics_urls))


def usage(standing: Standing, profile: Profile) -> Finding:
    """Look at what answers say: cached tokens, the server's own times, and the server's name."""
    url = next(iter(standing.server_urls.values()), without_version(standing.base_url))
    prompt = f"{secrets.token_hex(8)} " + "kvcache " * _WORDS
    if profile.max_model_len is not None:
        prompt = prompt[: max(64, profile.max_model_len * 2)]
    body = {"model": profile.served_name, "max_tokens": 2, "temperature": 0}
    body["messages"] = [{"role": "user", "content": prompt}]
    first, second = (_completed(f"{url}/v1/chat/completions", body, standing) for _ in range(2))
    details = (second.get("usage") or {}).get("prompt_tokens_details") or (first.get("usage") or {}).get(
        "prompt_tokens_details"
    )
    role = str(((second.get("choices") or [{}])[0].get("message") or {}).get("role") or "")
    lacks = [] if details else [f"which part of a prompt was cached ({_DETAILS})"]
    if "@" not in role:
        lacks.append("which server answered (start vLLM with --response-role assistant@NAME)")
    if "metrics" not in second:
        lacks.append("their server's own times (start vLLM with --enable-per-request-metrics)")
    if lacks:
        return Finding("warn", f"answers do not tell {'; '.join(lacks)}")
    return Finding("pass", f"cached tokens, server ({role.partition('@')[2]}) and its times are told")


def tokenizer(standing: Standing, profile: Profile) -> Finding:
    """Look at whether vLLM's tokenizer API answers, by which prompts get their exact lengths."""
    url = next(iter(standing.server_urls.values()), without_version(standing.base_url))
    said = _posted(below(url, "tokenize"), {"model": profile.served_name, "prompt": "one two"}, standing)
    if "count" not in said:
        return Finding("fail", f"{url}/tokenize is not vLLM's tokenizer API", 'name a server, or take mode = "compat"')
    longest, most = profile.workload.longest_tokens(), said.get("max_model_len")
    if longest is not None and isinstance(most, int) and longest > most:
        return Finding("fail", f"the longest prompt with its answer has {longest} tokens, the server takes {most}")
    return Finding("pass", f"{url}, up to {most} tokens")


def quiet(standing: Standing) -> Finding:
    """Look at whether others send prompts while nothing of ours is sent."""
    if not standing.server_urls:
        return Finding("warn", "cannot be told: the servers are not named")
    urls = {name: url for name, url in standing.metrics_urls.items() if name in standing.server_urls}
    before = scrape_all(urls)
    time.sleep(_WATCHED_S)
    grown = {name: total(own, _PROMPTS) - total(before[name], _PROMPTS) for name, own in scrape_all(urls).items()}
    running = sum(total(own, "vllm:num_requests_running") for own in before.values())
    if sum(grown.values()) or running:
        each = ", ".join(f"{name} {count / _WATCHED_S:.0f}" for name, count in grown.items())
        return Finding(
            "warn",
            f"others use it: prompt tokens a second: {each}; {running:.0f} requests running",
            "a run beside them is incomparable; measure when nobody else does",
        )
    return Finding("pass", f"no prompt in {_WATCHED_S:.0f} s")


def _told(look: Callable[[], Finding]) -> Callable[[], Finding]:
    """Return a check that fails with an error's words in place of raising it."""

    def inspect() -> Finding:
        try:
            return look()
        except KvCacheError as error:
            return Finding("fail", f"{error.where}: {error.what}" if error.where else error.what, error.todo)

    return inspect


def _completed(url: str, body: dict[str, Any], standing: Standing) -> dict[str, Any]:
    return _posted(url, body, standing)


def _posted(url: str, body: dict[str, Any], standing: Standing) -> dict[str, Any]:
    headers = {"Authorization": standing.authorization} if standing.authorization else {}
    try:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = verification(url)
            answer = session.post(url, json=body, headers=headers, timeout=_TIMEOUT_S)
        said = answer.json() if answer.status_code == 200 else None
    except requests.RequestException as error:
        raise KvCacheError(redacted(str(error)), where=url) from None
    if not isinstance(said, dict):
        raise KvCacheError(f"HTTP {answer.status_code}: {redacted(answer.text)[:200]}", where=url)
    return said

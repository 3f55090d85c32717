"""Which deployments a session measures: of kvcache.toml and of the command line, checked before anything is sent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pytest_kvcache.config.attach import Attach
from pytest_kvcache.config.options import Addresses, Options
from pytest_kvcache.endpoint import certificates
from pytest_kvcache.endpoint.address import read_key
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.tier import Tier
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.tiers.catalogue import Catalogue


def missing(tier: str) -> ConfigError:
    """Return the error for a tier that nothing stands for."""
    return ConfigError(
        "no deployment was named that serves it",
        where=f"tier {tier}",
        todo=f"write [attach.{tier}] with base_url into kvcache.toml, or give --tier and --kv-base-url",
    )


def authorization_of(attach: Attach, environ: Mapping[str, str]) -> str:
    """Return the value of the header `Authorization` for a deployment, "" where it has no API key.

    Raises:
        ConfigError: The variable that has the key is not set, or holds none.
    """
    if not attach.api_key_env:
        return ""
    key = read_key(attach.api_key_env, environ, where=f"attach.{attach.tier}.api_key_env")
    return f"Bearer {key}"


def named(
    addresses: Addresses, known: Catalogue, tiers: Sequence[Tier], *, asked: Sequence[str], tier_option: str = "--tier"
) -> dict[str, Attach]:
    """Return the deployments of a session, with what the command line says of them, all checked.

    Args:
        addresses: What the command line says.
        known: What kvcache.toml says.
        tiers: Tiers of the session.
        asked: Tiers that the command line names.
        tier_option: How the option that names them is spelled.

    Raises:
        ConfigError: There is none, a key is missing, or certificates cannot be read.
    """
    found = dict(known.attach)
    if given := [option for option, value in addresses.by_option().items() if value]:
        if len(asked) != 1:
            raise ConfigError(
                "which tier the deployment serves is not said",
                where=given[0],
                todo=f"name it: {tier_option} NAME, once",
            )
        (name,) = asked
        found[name] = _with_addresses(name, found.get(name), addresses)
    wanted = [tier for tier in tiers if tier.name in found]
    if not wanted:
        raise missing(tiers[0].name if len(tiers) == 1 else "any")
    for tier in wanted:
        attach = found[tier.name]
        authorization_of(attach, os.environ)
        if any(url.startswith("https:") for url in (attach.base_url, *attach.servers.values())):
            certificates.tls_context()
    return found


def _with_addresses(tier: str, known: Attach | None, options: Addresses) -> Attach:
    """Return a deployment whose addresses are those of the command line, where it gives any."""
    table = {} if known is None else known.model_dump(exclude_unset=True)
    if options.base_url:
        table["base_url"] = options.base_url
    if options.server_urls:
        table = {key: value for key, value in table.items() if key not in {"kubernetes", "servers", "metrics"}}
        table["servers"] = _by_name(options.server_urls, "--kv-server-url", numbered=True)
    if options.metrics_urls:
        table["metrics"] = {**table.get("metrics", {}), **_by_name(options.metrics_urls, "--kv-metrics-url")}
    return catalogue.validate(Attach, {**table, "tier": tier}, f"attach.{tier} with the command line")


def _by_name(texts: Sequence[str], option: str, *, numbered: bool = False) -> dict[str, str]:
    """Return URLs by name; of servers those without a name are numbered."""
    found: dict[str, str] = {}
    for index, text in enumerate(texts):
        name, equals, url = text.partition("=")
        if not equals or "://" in name:
            if not numbered:
                raise ConfigError(
                    "names no component", where=option, todo="NAME=URL, such as lmcache-0=http://…/metrics"
                )
            name, url = f"vllm-{index}", text
        if name in found:
            raise ConfigError(f"{name} is there twice", where=option)
        found[name] = url
    return found


def check_options(options: Options, *, attaches: bool) -> None:
    """Return if the options of deployments fit the others.

    Raises:
        ConfigError: Addresses are given and pairs are booted, or an A/B is asked of a deployment.
    """
    if not attaches:
        for option, value in options.addresses.by_option().items():
            if value:
                raise ConfigError(
                    "says where a deployment is, and pairs are booted", where=option, todo="add --kv-launcher attach"
                )
    elif options.against is not None:
        raise ConfigError(
            "compares two engines boot by boot, and a deployment that stands is not booted",
            where="--kv-against",
            todo="compare with its baselines, recorded with --record-baselines",
        )

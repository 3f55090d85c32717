"""Data that describe what a tier adds to a serving pair."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.serving.component import Component
from pytest_kvcache.storage.account import StorageAccount
from pytest_kvcache.storage.bucket import Bucket


@dataclass(frozen=True)
class PerServer:
    """A value that differs from server to server, for instance the name of a folder of its own.

    Args:
        prefix: Beginning of the value; the server's number follows.
        ends: What follows for each server, in their order, in place of its number.
    """

    prefix: str
    ends: tuple[str, ...] = field(default=(), kw_only=True)

    def of(self, index: int) -> str:
        """Return the value of the `index`-th server."""
        return f"{self.prefix}{self.ends[index] if self.ends else index}"


@dataclass(frozen=True)
class Reach:
    """How servers on other machines reach a storage that the run serves on this one: by TLS, with relays beside them.

    Args:
        machine: This machine, as outputs name it.
        address: HOST:PORT on this machine where the storage must listen, with TLS and nothing else.
        certificate: File of the certificate that it must show (PEM), which the relays trust alone.
        key: File of its private key (PEM).
        doors: HOST:PORT at which each server finds the storage on its own machine, without TLS.
    """

    machine: str
    address: str
    certificate: Path
    key: Path
    doors: tuple[str, ...]


@dataclass(frozen=True)
class Offload:
    """How LMCache is to be configured, in the terms of both of its modes.

    A value may be a `PerServer`; `of_server` fills it in.

    Args:
        l2_adapter: Content of the JSON for `lmcache server --l2-adapter`; None keeps KV in CPU RAM only (L1).
        engine_config: Keys of the in-process YAML (`LMCACHE_CONFIG_FILE`) beyond those of the CPU-RAM tier.
        engine_extra: More keys of the YAML's `extra_config`, no part of the tier and passed by an environment variable.
    """

    l2_adapter: Mapping[str, Any] | None = None
    engine_config: Mapping[str, Any] = field(default_factory=dict)
    engine_extra: Mapping[str, Any] = field(default_factory=dict)

    def of_server(self, index: int) -> Offload:
        """Return the configuration of the `index`-th server."""
        adapter = None if self.l2_adapter is None else _filled(self.l2_adapter, index)
        return Offload(adapter, _filled(self.engine_config, index), _filled(self.engine_extra, index))


@dataclass(frozen=True)
class TierPlan:
    """What a tier adds to a serving pair.

    Args:
        label: Name of the tier in every output; the name says where something stands in for the real storage.
        offload: LMCache's configuration, or None for vLLM alone.
        storage: Components to start before the servers.
        folders: Folders made before the boot and removed with all content at the end.
        env: Environment variables of the processes that talk to the storage.
        secret_env: Variables with credentials for the same processes, never printed, logged or stored.
        facts: Properties of the storage, for comparing one run with another.
        salt: Text in the keys of this boot, for a storage that is not the run's own and may hold earlier runs' objects;
            "" where the storage is fresh.
        bucket: Bucket of the user, from which LMCache's objects with the salt are removed at the end.
        storage_account: Account that the storage itself gives of what was stored and loaded; None without one.
        claims: Claim that the counters must prove; None for the claim that follows from `offload`.
        reached: Returns the plan with the same folders whose `storage` servers on other machines reach; None where the
            components of `storage` serve this machine alone.
    """

    label: str
    offload: Offload | None = None
    storage: tuple[Component, ...] = ()
    folders: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)
    salt: str = ""
    bucket: Bucket | None = None
    storage_account: StorageAccount | None = None
    claims: Claim | None = None
    reached: Callable[[Reach], TierPlan] | None = field(default=None, repr=False, compare=False)

    @property
    def claim(self) -> Claim:
        """Where the tier says that KV comes from."""
        if self.claims is not None:
            return self.claims
        if self.offload is None:
            return Claim.DEVICE
        return Claim.L2 if self.offload.l2_adapter is not None or self.offload.engine_config else Claim.L1

    def request_fields(self, *, in_process: bool) -> dict[str, Any]:
        """Return what each request carries so that LMCache's keys have the salt.

        As a server, LMCache takes vLLM's own `cache_salt` into each key; inside vLLM it does not, but takes tags.

        Args:
            in_process: Whether LMCache runs inside vLLM.
        """
        if not self.salt:
            return {}
        return {"kv_transfer_params": {"lmcache.tag.run": self.salt}} if in_process else {"cache_salt": self.salt}


def _filled(config: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return a table, and the tables in it, with the values of one server."""
    return {
        key: value.of(index)
        if isinstance(value, PerServer)
        else _filled(value, index)
        if isinstance(value, Mapping)
        else value
        for key, value in config.items()
    }


def salt_of(run_id: str) -> str:
    """Return a salt for a boot; all salts have one length, so that all boots send requests of the same size."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:16]

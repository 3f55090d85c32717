"""The plugin of vLLM, loaded in each process: it hooks the making of KV connectors, and imports nothing of LMCache.

LMCache must not be imported while plugins are loaded: vLLM's CPU worker then walks all modules to override Triton
kernels (`register_triton_kernel_overrides`, vLLM 0.32) and fails at one of LMCache's that has no dictionary.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
from typing import Any

#: Beginning of the names of the connectors that run LMCache inside vLLM: `LMCacheConnectorV1` of vLLM,
#: `LMCacheConnectorV1Dynamic` of LMCache.
_NAMES = "LMCacheConnectorV1"
_HOOKED = "_lmcache_cpu_connector"


def register() -> None:
    """Hook vLLM's connector factory where vLLM runs on CPUs; safe to call more than once."""
    from vllm.platforms import current_platform  # noqa: PLC0415 - nothing before vLLM asks for it

    if not current_platform.is_cpu():
        return
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory  # noqa: PLC0415

    hook(KVConnectorFactory)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(of no known version)"


def hook(factory: Any) -> None:
    """Have `factory.create_connector` make LMCache's connector with the one for CPU tensors.

    Args:
        factory: vLLM's `KVConnectorFactory`.
    """
    inner = factory.create_connector
    if getattr(inner, _HOOKED, False):
        return
    signature = inspect.signature(inner)

    @functools.wraps(inner.__func__)
    def create_connector(_cls: type, *args: Any, **kwargs: Any) -> Any:
        # The arguments are looked up by name, since older versions of vLLM pass no `kv_cache_config`.
        given = signature.bind(*args, **kwargs).arguments
        transfer = given["config"].kv_transfer_config
        if transfer is None or not str(transfer.kv_connector).startswith(_NAMES):
            return inner(*args, **kwargs)
        try:
            from . import install  # noqa: PLC0415 - imports LMCache
        except ImportError as error:
            raise RuntimeError(
                f"lmcache-cpu-connector is for LMCache 0.4.7 to 0.5.6, not {_version('lmcache')}: {error}"
            ) from error
        with install.connector_for(given["config"], given.get("kv_cache_config")):
            return inner(*args, **kwargs)

    setattr(create_connector, _HOOKED, True)
    factory.create_connector = classmethod(create_connector)

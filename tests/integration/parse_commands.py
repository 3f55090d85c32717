"""Runs in the engine environment: feeds rendered commands and files to vLLM's, LMCache's and the router's own parsers.

Reads a JSON list of components on standard input, prints a JSON object: name → what the parser understood.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch


def vllm(argv: list[str]) -> dict[str, Any]:
    """Parse `vllm serve …` as vLLM does, up to the engine's own configuration."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    command = ServeSubcommand()
    parser = FlexibleArgumentParser()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(argv)
    args.model = args.model_tag
    command.validate(args)
    engine = AsyncEngineArgs.from_cli_args(args)
    transfer = engine.kv_transfer_config
    return {
        "model": engine.model,
        "port": args.port,
        "blocks": engine.num_gpu_blocks_override,
        "connector": transfer.kv_connector if transfer else None,
        "extra": dict(transfer.kv_connector_extra_config) if transfer else {},
    }


def lmcache_server(argv: list[str]) -> dict[str, Any]:
    """Parse `lmcache server …` as LMCache does, up to its configuration objects."""
    from lmcache.cli.commands import register_commands
    from lmcache.v1.distributed.config import parse_args_to_config
    from lmcache.v1.multiprocess.config import parse_args_to_http_frontend_config, parse_args_to_mp_server_config

    parser = argparse.ArgumentParser()
    register_commands(parser.add_subparsers(dest="command"), argv)
    args = parser.parse_args(argv)
    storage = parse_args_to_config(args)
    parse_args_to_http_frontend_config(args)
    server = parse_args_to_mp_server_config(args)
    return {"port": server.port, "chunk": server.chunk_size, "storage": repr(storage)}


def lmcache_yaml(text: str, env: dict[str, str]) -> dict[str, Any]:
    """Read an in-process YAML as LMCache does, which applies the environment to it."""
    from lmcache.v1.config import LMCacheEngineConfig

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file, patch.dict(os.environ, env):
        file.write(text)
        file.flush()
        config = LMCacheEngineConfig.from_file(file.name)
        config.update_config_from_env()
    names = (
        "local_cpu",
        "max_local_cpu_size",
        "save_decode_cache",
        "remote_url",
        "remote_storage_plugins",
        "chunk_size",
        "internal_api_server_enabled",
        "internal_api_server_socket_path_prefix",
        "internal_api_server_include_index_list",
        "run_script_api_enabled",
        "script_allowed_imports",
    )
    return {name: getattr(config, name) for name in names} | {"extra": dict(config.extra_config or {})}


def router(argv: list[str]) -> dict[str, Any]:
    """Parse `vllm-router …` as the router does."""
    from vllm_router.launch_router import parse_router_args

    args = parse_router_args(argv)
    return {"policy": args.policy, "workers": args.worker_urls, "port": args.port}


def main() -> None:
    """Parse every component."""
    understood = {}
    for component in json.load(sys.stdin):
        argv, name = component["argv"], component["key"]
        program = Path(argv[0]).name
        if program == "vllm":
            understood[name] = vllm(argv[1:])
        elif program == "lmcache":
            understood[name] = lmcache_server(argv[1:])
        elif program == "vllm-router":
            understood[name] = router(argv[1:])
        for text in component["files"].values():
            understood[f"{name} yaml"] = lmcache_yaml(text, component["env"])
    sys.stdout.write("RESULT " + json.dumps(understood) + "\n")


if __name__ == "__main__":
    main()

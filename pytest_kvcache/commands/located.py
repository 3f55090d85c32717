"""Finds configuration, runs and baselines for a subcommand where pytest would find them in the same folder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from pytest_kvcache.config.project import Located, locate, project_here
from pytest_kvcache.paths import argument


def add_project_arguments(parser: argparse.ArgumentParser, *, reads_config: bool = True) -> None:
    """Declare the options by which pytest finds a project, and `--kv-config`.

    Args:
        parser: The subcommand's parser.
        reads_config: Whether the subcommand reads kvcache.toml.
    """
    parser.add_argument("--rootdir", type=argument, metavar="DIR", help="as for pytest")
    parser.add_argument("-c", "--config-file", type=argument, metavar="FILE", help="the ini file, as for pytest")
    if reads_config:
        parser.add_argument(
            "--kv-config", metavar="FILE", help="default: as for pytest (ini key kv_config, else kvcache.toml)"
        )


def located(args: argparse.Namespace) -> Located:
    """Return where configuration, engine, runs and baselines are, by a subcommand's flags, `addopts` and the ini file.

    Raises:
        ConfigError: A value is no path, or pytest cannot read its own configuration.
    """
    named = {"--rootdir": args.rootdir, "--config-file": args.config_file}
    project = project_here([f"{option}={path}" for option, path in named.items() if path])

    def option(name: str) -> Any:
        given = getattr(args, name, None)
        # A list adds to what `addopts` has, as on pytest's own command line.
        return [*(project.option(name) or ()), *given] if isinstance(given, list) else given or project.option(name)

    return locate(replace(project, option=option))

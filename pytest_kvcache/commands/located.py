"""Where a subcommand finds what it works on: where pytest would, in the same folder."""

from __future__ import annotations

import argparse

from pytest_kvcache.config.project import PATHS, TEXTS, Located, locate, project_here


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--kv-config`."""
    parser.add_argument("--kv-config", metavar="FILE", help="default: as for pytest (ini key kv_config, kvcache.toml)")


def located(args: argparse.Namespace) -> Located:
    """Return where everything is, from the flags of a subcommand, `addopts` and the ini file.

    Raises:
        ConfigError: A path is none, or pytest cannot read its own configuration.
    """
    return locate(project_here(), {name: getattr(args, name, None) for name in (*PATHS, *TEXTS)})

"""`pytest-kvcache render`: prints every command line and file that a run would use."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from pytest_kvcache.commands.located import add_project_arguments, located
from pytest_kvcache.engine.container import parse_mount
from pytest_kvcache.engine.named import engine_named, name_of
from pytest_kvcache.serving.charts.values import FORMATS, render_values
from pytest_kvcache.serving.render import render
from pytest_kvcache.tiers import catalogue

Say = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--kv-profile", required=True, metavar="NAME", help="the profile of the run")
    parser.add_argument("--tier", required=True, metavar="NAME", help="the tier of the run")
    add_project_arguments(parser)
    parser.add_argument("--kv-engine", metavar="ENGINE", help="folder, or image:REPO[:TAG]: name its programs")
    parser.add_argument("--kv-image-mount", action="append", default=[], metavar="MOUNT", help="as for pytest")
    parser.add_argument(
        "--format",
        choices=("script", *FORMATS),
        default="script",
        help="a shell script, or the values file of a Helm chart for a deployment that --kv-launcher attach measures",
    )
    parser.add_argument(
        "--image", default="", metavar="REPO:TAG", help="image of a chart's servers, with vLLM and LMCache"
    )
    parser.add_argument("--json", action="store_true", help="for programs: components with argv, env and files")


def run(args: argparse.Namespace, say: Say) -> int:
    """Print what would be started; return the exit code.

    Raises:
        ConfigError: A flag or kvcache.toml is wrong.
        SetupError: The engine has no vLLM.
    """
    found = located(args)
    known = catalogue.load(found.config)
    (tier,) = known.select([args.tier])
    if args.format != "script":
        say(render_values(args.format, known.profile(args.kv_profile), tier, args.image, os.environ))
        return 0
    mounts = [parse_mount(text, "--kv-image-mount") for text in found.image_mounts]
    profile = known.profile(args.kv_profile)
    name = name_of(found.engine, profile)
    engine = engine_named(name, mounts) if name else None
    if not args.json:
        say(f"# configuration: {found.config or 'built in'}")
    say(render(profile, tier, engine, os.environ, as_json=args.json))
    return 0

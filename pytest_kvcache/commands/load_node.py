"""`pytest-kvcache load-node`: an agent that sends a share of loads from this machine, as a coordinator says.

The coordinator is `pytest-kvcache load --node` or a session with load nodes. Whoever knows the key may have this
machine send requests, and run code.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from types import FrameType

from pytest_kvcache.endpoint.address import bracketed
from pytest_kvcache.load.nodes import agent
from pytest_kvcache.load.nodes.link import split_address
from pytest_kvcache.load.nodes.messages import KEY_ENV, read_node_key

Say = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--listen", required=True, metavar="HOST:PORT", help="address that coordinators reach; port 0 takes any"
    )
    parser.add_argument(
        "--node-key-env",
        default=KEY_ENV,
        metavar="VARIABLE",
        help=f"environment variable with the key that coordinators have too ({KEY_ENV})",
    )
    parser.add_argument("--once", action="store_true", help="end after the first load")


def run(args: argparse.Namespace, say: Say) -> int:
    """Serve until Ctrl-C or SIGTERM; return the exit code."""
    key = read_node_key(args.node_key_env, os.environ)
    listener = agent.listen(*split_address(args.listen))
    host, port = listener.getsockname()[:2]
    address = f"{bracketed(host)}:{port}"

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    say(f"{agent.LISTENS} {address}")
    try:
        agent.serve(listener, key, say, once=args.once)
    except KeyboardInterrupt:
        say("load node ends")
    return 0

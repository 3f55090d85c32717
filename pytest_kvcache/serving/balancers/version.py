"""Which version of its program a balancer has."""

from __future__ import annotations

import re
import subprocess

from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.serving.balancers.kinds import KINDS

_LIMIT_S = 20.0
#: `HAProxy version 2.6.12-1+deb12u2 2025/04/26`, `HA-Proxy version 2.2.9`, `nginx version: nginx/1.22.1`.
_VERSION = re.compile(r"version:?\s+(?:nginx/)?(\S+)")


def version_of(settings: Balancer, engine: BaseEngine) -> str:
    """Return the version of the balancer's program, "" where it does not tell or the run starts none.

    Args:
        settings: The profile's balancer.
        engine: Knows its own packages, and where programs are.
    """
    kind = KINDS[settings.kind]
    if not kind.program:
        return ""
    if kind.program in engine.versions:
        return engine.versions[kind.program]
    program = engine.find(kind.program)
    argv = kind.version_argv(str(program)) if program else ()
    if not argv:
        return ""
    try:
        done = engine.call(argv, timeout_s=_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = _VERSION.search(done.stdout + done.stderr)
    return found[1] if found else ""

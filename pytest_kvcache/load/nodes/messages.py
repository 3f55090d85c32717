"""What coordinator and load node say to each other, and how each knows that the other runs the same code."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.load.driver import Progress
from pytest_kvcache.load.gathering import Told
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.records import RequestRecord
from pytest_kvcache.redaction import hide
from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.prepared import Prepared
from pytest_kvcache.workload.script import Conversation, Script

# Kinds of messages, one letter each. From the coordinator: who it is, a question for the clock, what to send, begin,
# hand over. From the node: who it is, its clock, ready, how far it is with rows that have ended, the end, an error.
HELLO, CLOCK, SHARE, START, STOP = "h", "c", "s", "g", "x"
READY, TOLD, DONE, ERROR = "r", "t", "d", "e"

#: Environment variable with the key, where none is named.
KEY_ENV = "KVCACHE_LOAD_KEY"
_LEAST_KEY = 16
#: When a question for the clock arrived, and when its answer left (ns, CLOCK_MONOTONIC of the node).
CLOCK_ANSWER = struct.Struct("!qq")
START_AT = struct.Struct("!q")
_HEAD = struct.Struct("!I")
_RECORDS = TypeAdapter(list[RequestRecord])


def read_node_key(name: str, environ: Mapping[str, str]) -> bytes:
    """Return the key in an environment variable.

    Raises:
        ConfigError: The variable is not set, or too short a key is in it; the key is not in the error.
    """
    key = environ.get(name, "").strip()
    if len(key) < _LEAST_KEY:
        what = f"holds fewer than {_LEAST_KEY} letters" if key else "is not set"
        raise ConfigError(
            f"environment variable {name} {what}: load nodes and coordinator know each other by the key in it",
            where="load nodes",
            todo=f"export {name}=$(openssl rand -hex 32), the same on all of them",
        )
    hide(key)
    return key.encode()


@functools.cache
def identity() -> dict[str, Any]:
    """Return who this side is: versions, a digest of the code that sends, and the machine."""
    return {
        "version": version("pytest-kvcache"),
        "code": _code_digest(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "processors": len(os.sched_getaffinity(0)),
    }


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Return why two sides cannot share a load, "" where they can: rows of one run come from one code."""
    for key, what in (("version", "pytest-kvcache"), ("python", "Python")):
        a, b = (_release(str(side.get(key))) if key == "python" else side.get(key) for side in (ours, theirs))
        if a != b:
            return f"the node has {what} {theirs.get(key)}, the coordinator {ours.get(key)}"
    if ours["code"] != theirs.get("code"):
        return f"the node has other code of pytest-kvcache {ours['version']} than the coordinator"
    return ""


def _release(text: str) -> str:
    return ".".join(text.split(".")[:2])


def _code_digest() -> str:
    """Return a digest of the packages that make, send and read requests."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in ("client", "load", "workload"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class NodeShare:
    """What one node sends.

    Args:
        plan: The plan of the run as JSON, with a workload that needs no file of the coordinator's.
        conversations: The conversations of this node.
        user_header: Whether requests name their user.
        concurrency: So many of the conversations are under way at a time; None where each begins at its time.
    """

    plan: str
    conversations: tuple[Conversation, ...]
    user_header: bool
    concurrency: int | None

    def pack(self) -> bytes:
        """Return the share as the body of a message. A text that several prompts share is in it once."""
        return pickle.dumps(self, pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def unpack(body: bytes) -> NodeShare:
        """Return the share in a message of a coordinator that has proved itself.

        Raises:
            TypeError: The message holds something else.
        """
        found = pickle.loads(body)  # noqa: S301 - whoever has the key may have this node run code; docs/scale.md
        if not isinstance(found, NodeShare):
            raise TypeError("no share of a load")
        return found


def shares(plan: LoadPlan, script: Script, count: int) -> Iterator[NodeShare]:
    """Yield the share of each of `count` nodes: every `count`-th conversation of the script."""
    own = {name: getattr(plan.workload, name) for name in Workload.model_fields if name != "kind"}
    # The node gets its texts, and needs neither the class of the workload nor the files that it reads.
    workload = Prepared(**own, script_file=Path("on the coordinator"), origin={})
    told = plan.model_copy(update={"workload": workload, "nodes": (), "metrics_urls": {}}).model_dump_json()
    for i in range(count):
        concurrency = None if script.concurrency is None else len(range(i, script.concurrency, count))
        yield NodeShare(told, script.conversations[i::count], script.user_header or plan.names_users, concurrency)


def pack_rows(head: Mapping[str, Any], rows: list[RequestRecord]) -> bytes:
    """Return rows, and JSON values beside them, as the body of a message."""
    first = TypeAdapter(dict[str, Any]).dump_json(dict(head))
    return _HEAD.pack(len(first)) + first + _RECORDS.dump_json(rows)


def unpack_rows(body: bytes) -> tuple[dict[str, Any], list[RequestRecord]]:
    """Return what `pack_rows` packed.

    Raises:
        ValueError: It is something else.
    """
    if len(body) < _HEAD.size:
        raise ValueError("a message of rows is cut short")
    (size,) = _HEAD.unpack_from(body)
    head = TypeAdapter(dict[str, Any]).validate_json(body[_HEAD.size : _HEAD.size + size])
    return head, _RECORDS.validate_json(body[_HEAD.size + size :])


def pack_told(told: Told) -> bytes:
    """Return what a node says once a second as the body of a message."""
    return pack_rows({"progress": asdict(told.progress), "until_s": told.all_ended_until_s}, told.ended)


def unpack_told(body: bytes) -> Told:
    """Return what `pack_told` packed.

    Raises:
        ValueError: It is something else.
    """
    head, rows = unpack_rows(body)
    until_s = head.get("until_s")
    return Told(Progress(**head["progress"]), rows, float("inf") if until_s is None else float(until_s))

"""Pytest's side of the process that talks to Ray."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pytest_kvcache.errors import BootError, SetupError
from pytest_kvcache.runs.processes import leader_of
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.nodes.facts import Failure, Node

#: Limit for a request whose own limit has passed: the answer to that is under way (s).
_SLACK_S = 15.0
_CONNECT_S = 180.0
#: Limit for the process to leave the cluster by itself (s).
_LEAVE_S = 12.0
_LOG = "ray.log"

#: Ray reports to nobody, and says nothing twice.
_QUIET = {"RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class Cluster:
    """A connection with a cluster, for one boot.

    Args:
        run: Owns the process.
        logs: Folder for the log of the process.
        own_token: Whether the cluster is made here and asks for a token of its own.

    Raises:
        SetupError: Ray is not installed.
    """

    def __init__(self, run: RunSession, logs: Path, *, own_token: bool) -> None:
        if find_spec("ray") is None:
            raise SetupError(
                "Ray is not installed beside pytest",
                where="launcher ray",
                todo="pip install 'pytest-kvcache[ray]' here and on each node",
            )
        logs.mkdir(parents=True, exist_ok=True)
        self.log = (logs / _LOG).resolve()
        self._run = run
        ours, theirs = socket.socketpair()
        with run.making(), self.log.open("ab") as out, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest_kvcache.serving.nodes", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_QUIET, **(_own_cluster(run.scratch) if own_token else {})},
                start_new_session=True,
            )
            self._leader = leader_of(self._process.pid, self.log)
            run.own_process(self._leader)
        self._pipe = Connection(ours.detach())
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[tuple[bool, Any]]] = {}
        self._writing = threading.Lock()
        threading.Thread(target=self._read, name="kvcache-ray", daemon=True).start()

    def connect(self, address: str, **options: Any) -> None:
        """Connect to the cluster.

        Raises:
            BootError: It does not answer, or has another version of Ray or Python.
        """
        self._ask("connect", _CONNECT_S, address=address, options=options)

    def nodes(self) -> list[Node]:
        """Return the nodes of the cluster."""
        found: list[Node] = self._ask("nodes", 30.0)
        return found

    def here(self) -> Node:
        """Return the node of this machine."""
        found: Node = self._ask("here", 30.0)
        return found

    def sweep(self) -> dict[str, list[str]]:
        """Have every node remove what dead runs left there; return lines by the node's name."""
        found: dict[str, list[str]] = self._ask("sweep", _CONNECT_S)
        return found

    def place(self, bundles: Sequence[Mapping[str, float]], strategy: str, wait_s: float) -> bool:
        """Reserve resources; return whether the cluster had them in time."""
        return bool(self._ask("place", wait_s, bundles=list(bundles), strategy=strategy, wait_s=wait_s))

    def start_agents(self, bundles: Sequence[Mapping[str, float]]) -> list[Any]:
        """Start an agent in each bundle that was reserved; return what each says of its node."""
        found: list[Any] = self._ask("start_agents", _CONNECT_S, bundles=list(bundles))
        return found

    def ask(self, index: int, method: str, /, *, timeout_s: float = 60.0, **arguments: Any) -> Any:
        """Call a method of an agent.

        Raises:
            BootError: The method failed, or the node or the connection was lost.
        """
        request = {"index": index, "method": method, "arguments": arguments, "timeout_s": timeout_s}
        return self._request("ask", timeout_s, request)

    def close(self) -> list[str]:
        """End all agents and the connection; return a line for each thing that stays."""
        said: list[str] = []
        try:
            if self._process.poll() is None:
                said = self._ask("release", 40.0)
        except BootError as error:
            said = [str(error)]
        finally:
            with self._writing:
                self._pipe.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_LEAVE_S)
            self._run.end_processes([self._leader])
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1.0)
        return said

    def _ask(self, method: str, timeout_s: float, /, **arguments: Any) -> Any:
        return self._request(method, timeout_s, arguments)

    def _request(self, method: str, timeout_s: float, arguments: Mapping[str, Any]) -> Any:
        number = next(self._numbers)
        future: Future[tuple[bool, Any]] = Future()
        self._waiting[number] = future
        try:
            with self._writing:
                self._pipe.send((number, method, arguments))
            done, result = future.result(timeout_s + _SLACK_S)
        except FutureTimeoutError:
            raise BootError(f"Ray does not answer within {timeout_s:.0f} s", where=str(self.log)) from None
        except (OSError, EOFError):
            raise self._gone() from None
        finally:
            self._waiting.pop(number, None)
        if not done:
            failure: Failure = result
            raise BootError(failure.what, where=failure.where or "launcher ray", todo=failure.todo)
        return result

    def _read(self) -> None:
        while True:
            try:
                number, done, result = self._pipe.recv()
            except (OSError, EOFError, TypeError):
                break
            if future := self._waiting.get(number):
                future.set_result((done, result))
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(EOFError())

    def _gone(self) -> BootError:
        return BootError(
            "the connection with the cluster was lost: the raylet of this machine died, or its head node",
            where=str(self.log),
            todo="`ray status` says whether the cluster lives",
        )


def _own_cluster(scratch: Path) -> dict[str, str]:
    """Return what has a new cluster ask for a token, which nobody but this user can read (Ray 2.52 and newer).

    Its workers have the usual priority.
    """
    path = scratch / "ray-token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32), encoding="utf-8")
    # Ray's workers, and all that they start, would come after all other programs of the machine.
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path), "RAY_worker_niceness": "0"}

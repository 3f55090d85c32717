"""A daemon behind SSH: each connection is an `ssh HOST docker system dial-stdio`, as the `docker` command has it.

The SDK's own way needs paramiko, which knows little of a user's ~/.ssh/config. OpenSSH knows all of it, and the remote
`docker` command knows which daemon is its user's. An `ssh` ends with the socket that it serves, however pytest ends.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any
from urllib.parse import urlsplit

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.runs.daemon_address import DaemonAddress

#: Variables of a Python environment that would have `ssh` load other libraries.
_NOT_FOR_SSH = ("LD_LIBRARY_PATH", "LD_PRELOAD")
_CONNECT_S = 15
_END_S = 5


def ssh_argv(address: DaemonAddress) -> tuple[str, ...]:
    """Return the command whose standard input and output are a connection to the daemon; it never asks anything."""
    url = urlsplit(address.url)
    words = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
    if url.username:
        words += ["-l", url.username]
    if url.port:
        words += ["-p", str(url.port)]
    # The other side's shell reads these words anew.
    host = ["--host", shlex.quote(f"unix://{address.socket}")] if address.socket else []
    dial = ["docker", *host, "system", "dial-stdio"]
    return (*words, "--", url.hostname or "", *dial)


class SshAdapter(HTTPAdapter):
    """Carries requests to a daemon behind SSH.

    Args:
        address: `ssh://…`.
        timeout_s: Of each read.

    Raises:
        ConfigError: OpenSSH is not installed.
    """

    def __init__(self, address: DaemonAddress, timeout_s: float) -> None:
        if shutil.which("ssh") is None:
            raise ConfigError("ssh is not installed", where=address.url, todo="install OpenSSH's client")
        self._argv = ssh_argv(address)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._running: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []
        self._connections = _Pool(self, timeout_s)
        super().__init__()

    def connect(self) -> socket.socket:
        """Return a new connection to the daemon."""
        ours, theirs = socket.socketpair()
        env = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_SSH}
        with theirs:
            # In a session of its own: Ctrl-C is pytest's, and there is no terminal to ask for a password on.
            process = subprocess.Popen(
                self._argv,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                env=env,
                start_new_session=True,
            )
        self._running.append(process)
        self._sockets.append(ours)
        return ours

    def said(self) -> str:
        """Return the last line that `ssh` or the remote command wrote to its errors, "" where it wrote none."""
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        """Return the pool of connections: there is one host only."""
        return self._connections

    def request_url(self, request: Any, proxies: Mapping[str, str] | None) -> str:
        """Return the path alone: no proxy lies between."""
        del proxies
        return str(request.path_url)

    def close(self) -> None:
        """End all connections."""
        super().close()
        self._connections.close()
        for sock in self._sockets:
            # The SDK keeps files of those of which it read a stream, and these would keep them open.
            if (number := sock.detach()) >= 0:
                os.close(number)
        _end(self._running)
        self._errors.close()


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Pool(HTTPConnectionPool):
    def __init__(self, adapter: SshAdapter, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s, maxsize=10)
        self._adapter, self._timeout_s = adapter, timeout_s

    def _new_conn(self) -> HTTPConnection:
        return _Connection(self._adapter, self._timeout_s)


class _Connection(HTTPConnection):
    def __init__(self, adapter: SshAdapter, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._adapter = adapter

    def connect(self) -> None:
        try:
            self.sock = self._adapter.connect()
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(self, f"ssh: {error.strerror}") from error
        self.sock.settimeout(self.timeout if isinstance(self.timeout, int | float) else None)

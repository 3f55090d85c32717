"""The load node: an agent that listens on a machine, and sends its share of a load when a coordinator asks.

Each load has a process of its own, forked from the agent, so that nothing of one is left to the next. It ends when its
coordinator is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event

from pytest_kvcache.endpoint.address import read_key
from pytest_kvcache.errors import KvCacheError, RunError
from pytest_kvcache.load.ahead import first_requests
from pytest_kvcache.load.children import Children, Share, split
from pytest_kvcache.load.encoder import Encoder
from pytest_kvcache.load.gathering import Told
from pytest_kvcache.load.nodes import messages
from pytest_kvcache.load.nodes.channel import Channel, ChannelClosedError
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.workload.script import Script

#: More connections than this are not looked at side by side: a load has one.
_MOST = 8
_TICK_S = 0.2
#: A load that is ending is waited for so long (s).
_ENDING_S = 3.0
_PR_SET_PDEATHSIG = 1
#: What an agent prints once coordinators may connect, with its address behind it.
LISTENS = "load node listens on"
Say = Callable[[str], None]


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        RunError: The address is none of this machine's, or is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_MOST)
    except OSError as error:
        raise RunError(
            f"cannot listen: {error.strerror or error}",
            where=f"{host}:{port}",
            todo="name an address of this machine, and a port that is free (0 takes any)",
        ) from None


def serve(listener: socket.socket, key: bytes, say: Say, *, once: bool = False) -> None:
    """Answer coordinators, one load at a time, until this process is told to end (SIGTERM, Ctrl-C).

    Args:
        listener: Listens; each coordinator connects to it.
        key: The secret that coordinators know too.
        say: Prints a line.
        once: Whether to end after the first load that began, whatever came of it.
    """
    context = multiprocessing.get_context("fork")
    say = _heard_or_not(say)
    listener.settimeout(_TICK_S)
    sessions: list[BaseProcess] = []
    served = context.Event()
    messages.identity()  # worked out once, before any coordinator waits for it
    try:
        while not (once and served.is_set() and not sessions):
            sessions = [each for each in sessions if each.is_alive()]
            try:
                sock, peer = listener.accept()
            except TimeoutError:
                continue
            if len(sessions) >= _MOST or (once and served.is_set()):
                sock.close()
                continue
            process = context.Process(
                target=_session, args=(listener, sock, key, str(peer[0])), kwargs={"say": say, "served": served}
            )
            process.start()
            sock.close()
            sessions.append(process)
    finally:
        for each in sessions:
            each.terminate()
        for each in sessions:
            each.join(_TICK_S * 10)
        listener.close()


def _heard_or_not(say: Say) -> Say:
    """Return what prints a line, and goes on where nobody reads it."""

    def saying(line: str) -> None:
        with contextlib.suppress(OSError):
            say(line)

    return saying


def _session(listener: socket.socket, sock: socket.socket, key: bytes, peer: str, *, say: Say, served: Event) -> None:
    """Be the process that serves one coordinator."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):  # the agent ends its sessions itself
        signal.signal(number, signal.SIG_IGN)
    address = listener.getsockname()
    listener.close()
    try:
        channel = Channel(sock, key, calls=False)
    except RunError as error:
        say(f"{peer}: {error.what}")
        return
    with contextlib.suppress(ChannelClosedError):
        try:
            with _only_one(address):
                _Session(channel, peer, say, served).run()
        except KvCacheError as error:
            say(f"{peer}: {error}")
            channel.send_json(messages.ERROR, {"what": error.what, "todo": error.todo})
            channel.await_end()
        except ChannelClosedError:
            raise
        except Exception as error:  # whatever it is, the coordinator must not wait for it
            say(f"{peer}: {type(error).__name__}: {error}")
            channel.send_json(
                messages.ERROR, {"what": f"{type(error).__name__}: {error}", "todo": "see the node's log"}
            )
            channel.await_end()
    channel.close()


@contextlib.contextmanager
def _only_one(address: object) -> Iterator[None]:
    """Hold the name of the one load of an agent, which load processes inherit and the kernel frees with the last.

    A load that is just ending is waited for.

    Raises:
        RunError: Another load has it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held:
        until_s = time.monotonic() + _ENDING_S
        while True:
            try:
                held.bind(f"\0pytest-kvcache-load-node-{address}")
                break
            except OSError:
                if time.monotonic() > until_s:
                    todo = "wait for its end, or start another agent"
                    raise RunError("is busy with another load", todo=todo) from None
                time.sleep(_TICK_S / 4)
        yield


class _Session:
    """One load, on the node.

    Args:
        channel: To the coordinator.
        peer: The coordinator's address, to be printed.
        say: Prints a line.
        served: Set when the load begins.
    """

    def __init__(self, channel: Channel, peer: str, say: Say, served: Event) -> None:
        self._channel, self._peer, self._say, self._served = channel, peer, say, served
        self._children: Children | None = None
        self._sends = ""
        self._handed: set[tuple[int, int]] = set()
        self._gone = threading.Event()

    def run(self) -> None:
        """Answer the coordinator until it is gone.

        Raises:
            ChannelClosedError: It is gone before the load began.
            KvCacheError: The load cannot be sent from here.
        """
        children: Children | None = None
        while True:
            message = self._channel.receive()
            if message.kind == messages.START and children is not None:
                (start_ns,) = messages.START_AT.unpack(message.body)
                break
            if message.kind == messages.SHARE and children is None:
                children = self._children = self._prepared(messages.NodeShare.unpack(message.body))
            elif message.kind == messages.HELLO:
                self._greet(message.json())
            elif message.kind == messages.CLOCK:
                self._tell_time(message.at_ns)
        self._served.set()
        self._send_load(children, start_ns / 1e9)

    def _greet(self, theirs: dict[str, object]) -> None:
        ours = messages.identity()
        if told := messages.difference(theirs, ours):
            raise RunError(told, todo="install the coordinator's version on the node")
        self._channel.send_json(messages.HELLO, ours)

    def _tell_time(self, received_ns: int) -> None:
        self._channel.send(messages.CLOCK, messages.CLOCK_ANSWER.pack(received_ns, time.monotonic_ns()))

    def _prepared(self, told: messages.NodeShare) -> Children:
        plan = LoadPlan.model_validate_json(told.plan)
        headers = {}
        if plan.api_key_env:
            headers["Authorization"] = f"Bearer {read_key(plan.api_key_env, os.environ)}"
        encoder = Encoder(plan, headers)
        encoder.prepare(turn for each in told.conversations for turn in each.turns)
        first = first_requests(told.conversations, encoder, user_header=told.user_header)
        script = Script(told.conversations, concurrency=told.concurrency)
        count = plan.workload.worker_count(script) if told.conversations else 1
        share = Share(plan, told.conversations, encoder, told.user_header, first, told.concurrency, tells_rows=True)
        # From here on there are threads, and no more forks.
        children = Children(split(share, count), lambda _: None)
        children.relay = self._relay
        self._channel.send_json(messages.READY, {"workers": count})
        self._sends = f"sends {len(told.conversations)} conversations from {count} load processes"
        return children

    def _send_load(self, children: Children, start_s: float) -> None:
        children.begin(start_s)
        self._say(f"{self._peer}: {self._sends}")
        threading.Thread(target=self._answer, name="coordinator", daemon=True).start()
        children.listen()
        rest = [row for row in children.rows if (row.user, row.round) not in self._handed]
        head = {"lost": children.lost, "at_once": children.at_once}
        self._channel.send(messages.DONE, messages.pack_rows(head, rest))
        self._say(f"{self._peer}: {len(self._handed) + len(rest)} rows handed over")
        self._gone.wait()

    def _relay(self, told: Told) -> None:
        self._handed.update((row.user, row.round) for row in told.ended)
        with contextlib.suppress(ChannelClosedError):  # the thread that receives ends the load
            self._channel.send(messages.TOLD, messages.pack_told(told))

    def _answer(self) -> None:
        """Answer the coordinator while the load goes on, and after it; end the load where the coordinator is gone."""
        try:
            while True:
                message = self._channel.receive()
                if message.kind == messages.CLOCK:
                    self._tell_time(message.at_ns)
                elif message.kind == messages.STOP and self._children is not None:
                    self._children.stop()
        except ChannelClosedError:
            if self._children is not None:
                self._children.stop()
        self._gone.set()

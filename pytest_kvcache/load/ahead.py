"""Requests that are ready before they are due: made by a process beside the one that sends, within a bounded memory.

Making the request of a long prompt takes tens of milliseconds, in which the sending loop would send nothing. So another
process makes them in the order in which they are due. A thread of the sending process receives them, and is in the
kernel for nearly all of that time. The requests that come first are made before the clock starts (`first_requests`).
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping

from pytest_kvcache.load.encoder import Encoder, size_bytes
from pytest_kvcache.workload.script import Conversation, Turn

#: A request: number of the user, and identity of the turn, which a fork keeps. Numbers alone might be there twice.
Key = tuple[int, int]

#: Requests that are ready or being made have at most so many bytes together, and are at most so many.
HELD_BYTES = 64 << 20
_MOST = 1000
#: A request that is due so soon (s) is made whatever is held.
_SOON_S = 1.5
#: Later than any time (s).
_LAST_S = 1e15
_WANTED = struct.Struct("!qq")
_MADE = struct.Struct("!qqQ")
_LOOK_S = 0.1
_PR_SET_PDEATHSIG = 1


def key_of(user: int, turn: Turn) -> Key:
    """Return what the request of a turn is known by."""
    return user, id(turn)


def first_requests(
    conversations: Iterable[Conversation], encoder: Encoder, *, user_header: bool, held_bytes: int = HELD_BYTES
) -> dict[Key, bytes]:
    """Return the requests that are due first, made now, up to `held_bytes` in all.

    Args:
        conversations: Those of the whole run.
        encoder: Makes the requests.
        user_header: Whether requests name their user.
        held_bytes: The most that all of them together may have, but for one request.
    """
    begins = [(c.turns[0].at_s, i, c) for i, c in enumerate(conversations) if c.turns and not c.answers_return]
    heapq.heapify(begins)
    made: dict[Key, bytes] = {}
    total = 0
    while begins and total < held_bytes and len(made) < _MOST:
        _, _, conversation = heapq.heappop(begins)
        turn, user = conversation.turns[0], conversation.user
        named = user if user_header else None
        payload = made[key_of(user, turn)] = encoder.encode((), turn, named, encoder.place(user, turn))
        total += len(payload)
    return made


class Ahead:
    """The requests of one sending process.

    Args:
        conversations: Those whose requests are wanted; those with real answers in their prompts are left out.
        encoder: Makes the requests.
        first: Requests that are made already.
        user_header: Whether requests name their user.
        held_bytes: The most that requests which are ready or being made may have together.
    """

    def __init__(
        self,
        conversations: Iterable[Conversation],
        encoder: Encoder,
        first: Mapping[Key, bytes],
        *,
        user_header: bool,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self._turns: dict[Key, Turn] = {
            key_of(c.user, turn): turn for c in conversations if not c.answers_return for turn in c.turns
        }
        self._encoder, self._user_header, self._held_bytes = encoder, user_header, held_bytes
        self._arrived = threading.Condition()
        self._ready = {key: payload for key, payload in first.items() if key in self._turns}
        self._asked: dict[Key, int] = {key: len(payload) for key, payload in self._ready.items()}
        self._held = sum(self._asked.values())
        self._upcoming: list[tuple[float, Key]] = []
        self._taken: set[Key] = set()
        self._alive = False
        self._maker = 0

    def __enter__(self) -> Ahead:
        if not set(self._turns) - set(self._ready):
            return self
        ours, theirs = socket.socketpair()
        self._maker = os.fork()
        if self._maker == 0:
            ours.close()
            self._make(theirs)
        theirs.close()
        self._socket, self._alive = ours, True
        self._reader = threading.Thread(target=self._receive, name="requests made ahead", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._maker:
            self._alive = False
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._maker, signal.SIGKILL)
            self._reader.join()
            self._socket.close()
            os.waitpid(self._maker, 0)
            self._maker = 0

    def want(self, key: Key, due_s: float) -> None:
        """Have a request made that is due at about `due_s` (CLOCK_MONOTONIC); one that is wanted already is no more."""
        if key not in self._asked and key not in self._taken:
            heapq.heappush(self._upcoming, (due_s, key))

    def want_in_turn(self, key: Key, place: int) -> None:
        """Have a request made that is sent when others end: after all whose time is known, in the order of `place`."""
        if key not in self._asked:
            heapq.heappush(self._upcoming, (_LAST_S + place, key))

    def ask(self) -> None:
        """Have as many of the wanted requests made as may be held, the soonest first."""
        while self._alive and self._upcoming:
            due_s, key = self._upcoming[0]
            full = self._held >= self._held_bytes or len(self._asked) >= _MOST
            if full and due_s - time.monotonic() > _SOON_S:
                return
            heapq.heappop(self._upcoming)
            self._ask(key)

    def take(self, key: Key) -> bytes:
        """Return a request that is due now; wait for it where it is not there yet, and make it where nobody does.

        A request that was taken before is made again.
        """
        if key in self._taken:
            return self._made(key)
        self._ask(key)
        payload = self._ready.pop(key, None)
        if payload is None and self._alive:
            with self._arrived:
                while key not in self._ready and self._alive:
                    self._arrived.wait(_LOOK_S)
            payload = self._ready.pop(key, None)
        self._held -= self._asked.pop(key, 0)
        self._taken.add(key)
        self.ask()
        return self._made(key) if payload is None else payload

    def _ask(self, key: Key) -> None:
        if key in self._asked or key in self._taken or not self._alive:
            return
        size = self._asked[key] = size_bytes(self._turns[key])
        self._held += size
        with contextlib.suppress(OSError):  # the maker is gone, which the thread notices
            self._socket.sendall(_WANTED.pack(*key))

    def _made(self, key: Key) -> bytes:
        turn, user = self._turns[key], key[0]
        named = user if self._user_header else None
        return self._encoder.encode((), turn, named, self._encoder.place(user, turn))

    def _receive(self) -> None:
        """Take what the maker made, until it ends."""
        try:
            while True:
                user, turn, size = _MADE.unpack(_exactly(self._socket, _MADE.size))
                payload = _exactly(self._socket, size)
                with self._arrived:
                    self._ready[user, turn] = payload
                    self._arrived.notify_all()
        except OSError:
            with self._arrived:
                self._alive = False
                self._arrived.notify_all()

    def _make(self, end: socket.socket) -> None:
        """Be the maker: a process that ends with the one that sends."""
        status = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            with contextlib.suppress(OSError):
                while True:
                    key: Key = _WANTED.unpack(_exactly(end, _WANTED.size))
                    payload = self._made(key)
                    end.sendall(_MADE.pack(*key, len(payload)) + payload)
            status = 0
        finally:
            os._exit(status)  # nothing of the sending process may be done twice


def _exactly(end: socket.socket, size: int) -> bytes:
    """Return the next `size` bytes.

    Raises:
        ConnectionError: The other side is gone.
    """
    found = end.recv(size, socket.MSG_WAITALL)
    while len(found) < size:  # a signal ended the wait
        more = end.recv(size - len(found), socket.MSG_WAITALL)
        if not more:
            raise ConnectionError("the other side is gone")
        found += more
    return found

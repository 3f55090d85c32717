"""Turns prompts into HTTP requests."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable
from urllib.parse import urlsplit

from pytest_kvcache.client import framing
from pytest_kvcache.endpoint.address import below, host_header, target
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.turns import turn_of
from pytest_kvcache.workload.script import LateText, Message, Turn

#: Encoded texts that are made late are kept up to this size (bytes), since the blocks of long prefixes come again soon.
_KEPT_BYTES = 64 << 20


class Encoder:
    """Turns prompts into requests. Each text is encoded once, however many prompts it is part of.

    Args:
        plan: Gives URLs, model and further fields of the requests.
        headers: More HTTP headers, by name.
    """

    def __init__(self, plan: LoadPlan, headers: dict[str, str]) -> None:
        chats = [urlsplit(below(url, "chat/completions")) for url in plan.urls]
        self._targets = [(host_header(chat), target(chat)) for chat in chats]
        self._plan, self._headers = plan, headers
        self._texts: dict[str, bytes] = {}
        self._late: OrderedDict[LateText, bytes] = OrderedDict()
        self._late_bytes = 0

    def prepare(self, turns: Iterable[Turn]) -> None:
        """Encode all texts of `turns` that are there, so that none of them is left to encode when a turn is due."""
        for turn in turns:
            for message in turn.messages:
                for part in message.parts:
                    if isinstance(part, str):
                        self._text(part)

    def place(self, user: int, turn: Turn) -> int:
        """Return which of the plan's URLs a turn of a user goes to."""
        return turn_of(user, turn.round, len(self._targets))

    def encode(self, history: Iterable[Message], turn: Turn, user: int | None, place: int = 0) -> bytes:
        """Return the whole request of a turn to the plan's URL number `place`, which names `user` unless it is None."""
        messages = b",".join(self._message(m) for m in (*history, *turn.messages))
        rest: dict[str, object] = {
            "model": self._plan.model,
            "max_tokens": turn.answer_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._plan.workload.ignore_eos:
            rest["ignore_eos"] = True
        rest |= self._plan.extra_body
        body = b'{"messages":[' + messages + b"]," + json.dumps(rest).encode()[1:]
        headers = self._headers if user is None else {**self._headers, "x-user-id": str(user)}
        host, path = self._targets[place]
        return framing.request(host, path, body, headers)

    def _message(self, message: Message) -> bytes:
        content = b" ".join(
            self._text(part) if isinstance(part, str) else self._late_text(part) for part in message.parts
        )
        return b'{"role":"%s","content":"%s"}' % (message.role.encode(), content)

    def _text(self, part: str) -> bytes:
        found = self._texts.get(part)
        if found is None:
            found = self._texts[part] = _escaped(part)
        return found

    def _late_text(self, part: LateText) -> bytes:
        found = self._late.get(part)
        if found is not None:
            self._late.move_to_end(part)
            return found
        made = self._late[part] = _escaped(str(part))
        self._late_bytes += len(made)
        while self._late_bytes > _KEPT_BYTES:
            self._late_bytes -= len(self._late.popitem(last=False)[1])
        return made


def size_bytes(turn: Turn) -> int:
    """Return about how large the request of a turn is, without making it."""
    return sum(
        len(part) if isinstance(part, str) else part.words * 8 for message in turn.messages for part in message.parts
    )


def _escaped(text: str) -> bytes:
    return json.dumps(text)[1:-1].encode()

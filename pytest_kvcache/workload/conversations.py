"""Conversations from files of ShareGPT's and other forms.

A file is a JSON array of objects, or JSON objects one after the other (JSON lines). An object is a conversation in one
of these forms:

- `{"conversations": [{"from": "human" | "gpt", "value": "…"}, …]}`, as in ShareGPT,
- `{"messages": [{"role": "user" | "assistant", "content": "…"}, …]}`, as in the chat API, and the same with the key
  `conversation`, as in WildChat.

Users and assistant take turns from the first question on. A conversation is used as far as they do: it ends before a
message of another role (a tool's, a system's in the middle), before two messages of one side in a row, and before a
message that has more than text, or none. A system prompt or an answer before the first question is not sent, and
neither are a system prompt and tools that an entry has beside its messages.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.workload.json_values import json_values

_USER, _ASSISTANT, _SYSTEM = "user", "assistant", "system"
_SIDES = {
    **dict.fromkeys(("human", "user", "prompter"), _USER),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "claude", "bot", "ai", "model"), _ASSISTANT),
}
_ROLES = {**_SIDES, **dict.fromkeys(("system", "developer"), _SYSTEM)}
#: Keys of the list of messages, each with the keys of a message's role and text.
_FORMS = {
    "conversations": (("from", "role"), ("value", "content")),
    "messages": (("role", "from"), ("content", "value")),
    "conversation": (("role", "from"), ("content", "value")),
}
#: Keys by which a message of the chat API calls something, and may then have no text.
_CALLS = ("tool_calls", "function_call")
#: Keys of messages and entries that have more than text, as LLaVA's and LLaMA-Factory's have.
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
#: Keys beside the messages for what a server would put before them.
_BEFORE = ("system", "system_prompt", "tools", "functions")
#: Types of the parts of a message that are text.
_TEXT_PARTS = ("text", "input_text", "output_text")
#: JSON may have it in a text, UTF-8 and thus a request may not.
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Saying:
    """One message of the file.

    Args:
        role: `user`, `assistant` or `system`, or a role that is none of these as it stands in the file.
        text: Text of the message; None where it has none, or more than text.
        tokens: Length of the message, where the file has it.
    """

    role: str
    text: str | None
    tokens: int | None = None


@dataclass
class LeftOut:
    """What of a file is not sent.

    Args:
        read: How many conversations were read.
        roles: How many conversations ended early at a message of this role.
        turns: How many ended early at two messages of one side in a row.
        odd: How many ended early at a message that has more than text, or none.
        short: How many have too few rounds altogether.
        long: How many are longer than the context or than the model takes.
        before: How many of those that can be sent have messages before their first question.
    """

    read: int = 0
    roles: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    odd: int = 0
    short: int = 0
    long: int = 0
    before: int = 0

    @property
    def count(self) -> int:
        """How many conversations are not sent."""
        return self.short + self.long + self.turns + self.odd + self.roles.total()

    @property
    def reasons(self) -> str:
        """Why they are not sent, for people; "" for nothing."""
        found = [f"{self.short} are shorter"] if self.short else []
        found += [f"{self.long} are longer than the context or the model"] if self.long else []
        found += [f"{self.turns} have two messages of one side in a row"] if self.turns else []
        found += [f"{self.odd} have a message with more than text, or without"] if self.odd else []
        if self.roles:
            named = ", ".join(f"{count} {role}" for role, count in self.roles.most_common(6))
            found.append(f"some have other roles than {', '.join(sorted(_SIDES))}: {named}")
        return "; ".join(found)

    @property
    def words(self) -> str:
        """What of the file is not sent, for people; "" for nothing."""
        found = [f"{self.count} of {self.read} conversations that were read ({self.reasons})"] if self.count else []
        found += [f"what stands before the first question of {self.before}"] if self.before else []
        return ", and ".join(found)


def read(path: Path, left: LeftOut | None = None, *, rounds: int = 0) -> Iterator[list[Saying]]:
    """Yield each conversation of the file from its first question on, as far as user and assistant take turns.

    Args:
        path: The file.
        left: Counts what is not yielded.
        rounds: Conversations of fewer rounds, of a question and an answer each, are left out.

    Raises:
        ConfigError: The file cannot be read, or an entry is malformed; the message names file and entry, from 1.
    """
    left = LeftOut() if left is None else left
    for number, entry in json_values(path):
        sayings = _sayings(entry, f"{path}: entry {number}")
        before = _has(entry, _BEFORE)
        first = next((i for i, each in enumerate(sayings) if each.role not in {_SYSTEM, _ASSISTANT}), len(sayings))
        sayings = sayings[first:]
        wrong = next(
            (i for i, each in enumerate(sayings) if each.role != (_USER, _ASSISTANT)[i % 2] or each.text is None),
            len(sayings),
        )
        left.read += 1
        if wrong // 2 >= rounds:
            left.before += before or first > 0
            yield sayings[:wrong]
        elif len(sayings) // 2 < rounds:
            left.short += 1
        elif sayings[wrong].role not in {_USER, _ASSISTANT}:
            left.roles[_printable(sayings[wrong].role)[:40]] += 1
        elif sayings[wrong].text is None:
            left.odd += 1
        else:
            left.turns += 1


def _sayings(entry: Any, where: str) -> list[Saying]:
    forms = [name for name in _FORMS if isinstance(entry, dict) and isinstance(entry.get(name), list)]
    if not forms:
        names = ", ".join(f'"{name}"' for name in _FORMS)
        raise ConfigError(f"is not an object with a list of messages ({names})", where=where)
    more = _has(entry, _MEDIA)
    # Of several lists, as tables joined of several files have them, those without messages say nothing.
    found = [(name, [_saying(item, _FORMS[name], where, more=more) for item in entry[name]]) for name in forms]
    first, *others = [each for each in found if each[1]] or found[:1]
    if other := next((name for name, sayings in others if sayings != first[1]), None):
        raise ConfigError(f'has other messages in "{other}" than in "{first[0]}"', where=where, todo="keep one of them")
    return first[1]


def _saying(item: Any, form: tuple[tuple[str, ...], tuple[str, ...]], where: str, *, more: bool) -> Saying:
    roles, texts = form
    if not isinstance(item, dict):
        raise ConfigError(f"has a message that is no object: {item!r:.40}", where=where)
    role = _value(item, roles)
    if not isinstance(role, str):
        raise ConfigError(f'has a message without a role ("{roles[0]}")', where=where)
    calls = _has(item, _CALLS)
    found = _value(item, texts)
    if not isinstance(found, str | list | None) or not (calls or any(key in item for key in texts)):
        raise ConfigError(f'has a message without text ("{texts[0]}")', where=where)
    tokens = item.get("num_tokens")
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0):
        raise ConfigError(f"num_tokens is {tokens!r:.40}, not a count", where=where)
    known = role.strip()
    text = None if more or calls or _has(item, _MEDIA) else _plain(found)
    return Saying(_ROLES.get(known.lower(), known), text, tokens)


def _value(item: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Return the value under the first of the names that has one: joined tables have null under the others."""
    return next((item[name] for name in names if item.get(name) is not None), None)


def _has(item: dict[str, Any], names: tuple[str, ...]) -> bool:
    """Return whether one of the names has more than nothing: null, NaN, empty texts and lists are nothing."""
    return any(isinstance(item.get(name), str | list | dict) and item[name] for name in names)


def _plain(content: str | list[Any] | None) -> str | None:
    """Return a message's text, None where there is none, more than text, or what is no text in Unicode."""
    if isinstance(content, list):  # the chat API's parts
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS else None
            for part in content
        ]
        if not all(isinstance(text, str) for text in texts):
            return None
        content = "".join(map(str, texts))
    return content if content and not _HALF_A_PAIR.search(content) else None


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)

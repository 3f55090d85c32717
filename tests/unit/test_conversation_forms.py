"""Entries as data sets have them: what stands beside the texts is used, told or refused, and never dropped silently."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.workload.conversations import LeftOut, Saying, read

Message = dict[str, Any]
CHAT: list[Message] = [{"role": ("user", "assistant")[i % 2], "content": f"{i}"} for i in range(4)]
SHARE: list[Message] = [{"from": ("human", "gpt")[i % 2], "value": f"{i}"} for i in range(4)]
ODD_TYPES: tuple[Any, ...] = ([], {}, 5, None)
SAID = [Saying(each["role"], each["content"]) for each in CHAT]


def found(path: Path, entry: Any) -> tuple[list[list[Saying]], LeftOut]:
    """Return what is read of a file of one entry, and what is left out."""
    path.write_text(json.dumps([entry]), encoding="utf-8")
    left = LeftOut()
    return list(read(path, left, rounds=2)), left


@pytest.mark.parametrize(
    "entry",
    [
        {"conversations": SHARE, "image": None, "images": [], "system": "", "tools": None, "score": float("nan")},
        {"conversations": SHARE, "images": float("nan")},
        {"messages": CHAT, "conversations": None},
        {"messages": CHAT, "conversations": []},
        {"messages": CHAT, "conversations": SHARE},
        {"conversations": [{**each, "from": None, "value": None} for each in CHAT]},
        {"messages": [{**each, "from": None, "value": None, "images": [], "tool_calls": None} for each in CHAT]},
        {"messages": [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in CHAT]},
        {"messages": [{**each, "content": [{"text": each["content"], "image_url": None}]} for each in CHAT]},
    ],
)
def test_what_joined_tables_have_besides(tmp_path: Path, entry: Any) -> None:
    """Null, NaN and empty values, and the same messages in a second form, change nothing."""
    talks, left = found(tmp_path / "s", entry)
    assert talks == [SAID]
    assert left == LeftOut(read=1)


@pytest.mark.parametrize(
    "entry",
    [
        {"conversations": SHARE, "image": "coco/1.jpg"},
        {"conversations": SHARE, "images": ["1.jpg", "2.jpg"]},
        {"messages": CHAT, "videos": [{"path": "a.mp4"}]},
        {"messages": [{**CHAT[0], "audio": {"id": "a"}}, *CHAT[1:]]},
        {"messages": [CHAT[0], CHAT[1], {**CHAT[2], "images": ["1.jpg"]}, CHAT[3]]},
        {"conversations": [SHARE[0], {**SHARE[1], "value": ""}, *SHARE[2:]]},
        {"messages": [{**CHAT[0], "content": []}, *CHAT[1:]]},
        {"messages": [{**CHAT[0], "content": [{"type": "text", "text": ""}]}, *CHAT[1:]]},
        *({"messages": [{**CHAT[0], "content": [{"type": kind, "text": "t"}]}, *CHAT[1:]]} for kind in ODD_TYPES),
        {"messages": [{**CHAT[0], "content": ["t"]}, *CHAT[1:]]},
    ],
)
def test_what_is_more_than_text_or_none(tmp_path: Path, entry: Any) -> None:
    """Images beside the messages or in them, parts of no known type and empty texts are counted, and not left away."""
    talks, left = found(tmp_path / "s", entry)
    assert not talks
    assert left == LeftOut(read=1, odd=1)


@pytest.mark.parametrize("more", [{"system": "Be brief."}, {"tools": "[{}]"}, {"functions": [{"name": "f"}]}])
def test_what_an_entry_has_before_its_messages_is_told(tmp_path: Path, more: Any) -> None:
    """A system prompt and tools beside the messages are not sent, and told as one in the messages is."""
    talks, left = found(tmp_path / "s", {"conversations": SHARE, **more})
    assert talks == [SAID]
    assert left.words == "what stands before the first question of 1"


def test_two_lists_of_messages_that_differ(tmp_path: Path) -> None:
    """Of two different lists none is taken for the conversation."""
    with pytest.raises(ConfigError, match=r's: entry 1: has other messages in "messages" than in "conversations"'):
        found(tmp_path / "s", {"conversations": SHARE, "messages": CHAT[:2]})


def test_roles_in_messages_are_printable(tmp_path: Path) -> None:
    """A role of the file does not reach the terminal with control characters."""
    _, left = found(tmp_path / "s", {"conversations": [{"from": "\x1b[31mred", "value": "x"}] * 4})
    assert left.reasons.endswith(": 1 ?[31mred")


_KEYS = ["conversations", "messages", "conversation", "from", "role", "value", "content", "type", "text", "num_tokens"]
_MORE = ["image", "images", "tool_calls", "system", "tools"]
_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "user", "gpt", "text", "t"])
_ENTRIES = st.recursive(
    _VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS + _MORE), inner, max_size=5),
    max_leaves=20,
)


@settings(deadline=None, max_examples=300)
@given(_ENTRIES, st.sampled_from(_KEYS[:3]), st.lists(st.sampled_from([*CHAT, *SHARE]), max_size=4))
def test_no_value_of_a_known_key_makes_it_fall_over(
    tmp_path_factory: pytest.TempPathFactory, value: Any, key: str, talk: list[Any]
) -> None:
    """Whatever values an entry has under the keys that are read, it is used, counted, or refused with its number."""
    path = tmp_path_factory.getbasetemp() / "entries"
    for entry in (value, {key: value}, {key: [value]}, {key: [*talk, {**CHAT[0], "content": value}]}):
        with contextlib.suppress(ConfigError):
            talks, left = found(path, entry)
            assert len(talks) + left.count == left.read == 1

"""Files of conversations: in every form, of any size, with what is left out counted and what is wrong named."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.workload import json_values
from pytest_kvcache.workload.conversations import LeftOut, read
from pytest_kvcache.workload.script import Message, Script
from pytest_kvcache.workload.sharegpt import ShareGpt
from tests.unit.test_exact import Words

ROUNDS = 2
#: Users of `workload`, from its first to its last.
NEEDED = 6


def entry(*messages: tuple[str, Any], form: str = "conversations", **more: Any) -> dict[str, Any]:
    """Return a conversation of (role, text) in a form that files have."""
    role, text = ("from", "value") if form == "conversations" else ("role", "content")
    return {form: [{role: who, text: said} for who, said in messages], **more}


def talk(name: object, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return a good conversation whose texts have its name."""
    said = itertools.chain.from_iterable(
        (("human", f"question {name} {i}"), ("gpt", f"answer {name} {i}")) for i in range(rounds)
    )
    return entry(*said)


def workload(path: Path, entries: Sequence[Any] | str, **more: object) -> ShareGpt:
    """Write a file and return its workload of six users."""
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    values = {"users": 2, "rounds": ROUNDS, "qps": 2, "context_tokens": (100,), "answer_tokens": 6, "duration_s": 4}
    return ShareGpt.model_validate({"path": path, **values, **more})


def questions(script: Script) -> set[str]:
    """Return the first questions that a run sends."""
    turns = [*script.priming, *(turn for each in script.conversations for turn in each.turns)]
    return {turn.messages[0].text for turn in turns}


@pytest.mark.parametrize("lengths", [(100,), (100, 200), (100, 200, 300), (70, 60, 50, 40)])
@pytest.mark.parametrize("copies", [1, 3])
def test_no_first_question_is_of_two_lengths(tmp_path: Path, lengths: tuple[int, ...], copies: int) -> None:
    """Each length has conversations of its own, and all that begin with the same question, wherever they stand."""
    talks = [talk(i // copies) for i in range(copies * NEEDED * len(lengths))]
    made = workload(tmp_path / "s", talks, context_tokens=lengths)
    made.check()
    sent = [questions(made.script(length, Words(), first_user=i * 1000)) for i, length in enumerate(lengths)]
    assert all(sent)
    assert len(set.union(*sent)) == sum(map(len, sent))


def test_a_length_beside_the_workloads_finds_nothing_of_theirs(tmp_path: Path) -> None:
    """Lengths that a test asks for beside the profile's begin with other texts, each with its own."""
    made = workload(tmp_path / "s", [talk(i) for i in range(12)], context_tokens=(100, 200))
    sent = [questions(made.script(length, Words())) for length in (100, 200, 150, 160)]
    assert len(set.union(*sent)) == 4 * NEEDED
    assert made.sent(150)["part"] == "none"


def test_what_decides_the_requests_has_the_part_of_the_file(tmp_path: Path) -> None:
    """A length that shares the file with others has other requests than one that has it alone, and is told from it."""
    talks = [talk(i) for i in range(18)]
    alone, two, other = (workload(tmp_path / "s", talks, context_tokens=lengths) for lengths in ((9,), (9, 8), (8, 9)))
    assert "part" not in alone.sent(9)
    assert len({json.dumps(each.sent(9)) for each in (alone, two, other)}) == 3


@pytest.mark.parametrize(("skip", "first"), [(0, 0), (4, 4)])
def test_conversations_that_other_loads_have(tmp_path: Path, skip: int, first: int) -> None:
    """`skip_conversations` passes those over that another load on the servers has, and a run then needs more."""
    made = workload(tmp_path / "s", [talk(i) for i in range(10)], skip_conversations=skip)
    made.check()
    assert questions(made.script(100, Words())) == {f"question {i} 0" for i in range(first, first + NEEDED)}
    with pytest.raises(
        ConfigError, match=r"has 10 conversations .* needs 16, one for each of its users, after 10 that"
    ):
        workload(tmp_path / "s", [talk(i) for i in range(10)], skip_conversations=10).check()


def test_a_file_of_too_long_conversations_is_refused_before_a_boot(tmp_path: Path) -> None:
    """What is too long whatever the tokenizer is counted by `check`; the error has how many are left and needed."""
    talks = [talk(f"{i} {'w ' * (5000 if i % 2 else 1)}") for i in range(10)]
    with pytest.raises(ConfigError) as error:
        workload(tmp_path / "s", talks).check()
    assert "has 5 conversations of 2 rounds; the run needs 6, one for each of its users (5 are longer than" in str(
        error.value
    )
    with pytest.raises(ConfigError, match=r"needs 6 at each of 2 lengths, .*: 0 for 100, 4 for 9000 \(6 are longer"):
        workload(tmp_path / "s", talks[1::2] + talks[1::2], context_tokens=(100, 9000)).check()


def test_prompts_with_answers_that_the_model_does_not_take(tmp_path: Path) -> None:
    """A conversation is left out where its last prompt and answer are longer than the model takes together."""
    talks = [talk(f"{i} " + ("w " * 10 if i % 2 else "")) for i in range(12)]
    script = workload(tmp_path / "s", talks).script(100, Words(max_model_len=45))
    assert questions(script) == {f"question {i}  0" for i in range(0, 12, 2)}
    assert script.left_out == "5 of 11 conversations that were read (5 are longer than the context or the model)"
    with pytest.raises(RunError, match=r"0 conversations of 2 rounds fit .* needs 6, .* \(12 are longer than"):
        workload(tmp_path / "s", talks).script(100, Words(max_model_len=20))


H, G = ("human", "q"), ("gpt", "a")


@pytest.mark.parametrize(
    ("bad", "left", "reason"),
    [
        ([H, G, ("tool", "{}"), G], LeftOut(), "other roles than .*: 1 tool"),
        ([H, G, ("system", "be brief"), G], LeftOut(), "other roles than .*: 1 system"),
        ([("Frage", "q"), ("Antwort", "a")] * 2, LeftOut(), "other roles than .*assistant, .*user: 1 Frage"),
        ([H, ("function_call", "f()"), ("observation", "1"), G], LeftOut(), "other roles than .*: 1 function_call"),
        ([H, H, G, G], LeftOut(turns=1), "1 have two messages of one side in a row"),
        ([H, G, G, H], LeftOut(turns=1), "1 have two messages of one side in a row"),
        ([H, G, ("human", None), G], LeftOut(odd=1), "1 have a message with more than text, or without"),
        ([H, G, ("human", [{"type": "image_url", "image_url": {"url": "x"}}]), G], LeftOut(odd=1), "more than text"),
        ([H, G, ("human", [{"type": "text", "text": "t"}, 5]), G], LeftOut(odd=1), "more than text"),
        ([H, ("gpt", "\ud83d"), H, G], LeftOut(odd=1), "more than text"),
        ([H, G], LeftOut(short=1), "1 are shorter"),
        ([], LeftOut(short=1), "1 are shorter"),
    ],
)
@pytest.mark.parametrize("form", ["conversations", "messages", "conversation"])
def test_what_is_left_out(tmp_path: Path, form: str, bad: list[tuple[str, Any]], left: LeftOut, reason: str) -> None:
    """A conversation that no request can be made of is passed over and counted by its reason, which errors have."""
    entries = [talk("good"), entry(*bad, form=form)]
    made = workload(tmp_path / "s", entries)
    found = LeftOut()
    assert [each[0].text for each in read(tmp_path / "s", found, rounds=ROUNDS)] == ["question good 0"]
    assert (found.read, found.count, found.turns, found.odd, found.short) == (2, 1, left.turns, left.odd, left.short)
    with pytest.raises(ConfigError, match=rf"has 1 conversations of 2 rounds; the run needs 6.*{reason}"):
        made.check()


def test_a_conversation_is_used_as_far_as_sides_take_turns(tmp_path: Path) -> None:
    """What comes behind the rounds that are sent does not matter; what stands before the first question is told."""
    behind: list[tuple[str, Any]] = [("tool", "x"), ("gpt", None)]
    before = [("system", "be brief"), ("gpt", "hello")]
    talks = [
        entry(*before, ("human", f"question {i}"), G, H, G, *behind, form=("conversations", "messages")[i % 2])
        for i in range(NEEDED)
    ]
    made = workload(tmp_path / "s", talks)
    made.check()
    script = made.script(100, Words())
    assert questions(script) == {f"question {i}" for i in range(NEEDED)}
    assert script.left_out == "what stands before the first question of 6"


def test_messages_that_call_tools(tmp_path: Path) -> None:
    """The chat API's messages with calls have no text, or have it beside the calls: neither is sent as text alone."""
    path = tmp_path / "s"
    for call in ({"content": None}, {}, {"content": "let me see"}):
        said = {"role": "assistant", "tool_calls": [{"id": "1"}], **call}
        path.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}, said]}))
        found = LeftOut()
        assert not list(read(path, found, rounds=1))
        assert found.odd == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"conversations": [{"value": "q"}]}, 'has a message without a role ("from")'),
        ({"messages": [{"role": 5, "content": "q"}]}, 'has a message without a role ("role")'),
        ({"messages": [{"role": "user"}]}, 'has a message without text ("content")'),
        ({"conversation": [{"role": "user", "content": 5}]}, 'has a message without text ("content")'),
        ({"conversation": ["q"]}, "has a message that is no object: 'q'"),
        ({"conversations": "q"}, 'is not an object with a list of messages ("conversations", "messages", "conv'),
        ([talk(1)], "is not an object with a list of messages"),
        (None, "is not an object with a list of messages"),
        ({"messages": [{"role": "user", "content": "q", "num_tokens": 1e999}]}, "num_tokens is inf, not a count"),
        ({"messages": [{"role": "user", "content": "q", "num_tokens": "7"}]}, "num_tokens is '7', not a count"),
    ],
)
@pytest.mark.parametrize("as_lines", [False, True])
def test_a_malformed_entry(tmp_path: Path, as_lines: bool, bad: Any, message: str) -> None:
    """An entry that is none ends the reading with file, number and what is wrong, in arrays and lines."""
    entries = [talk(1), talk(2), bad]
    path = tmp_path / "s.json"
    path.write_text("\n".join(map(json.dumps, entries)) if as_lines else json.dumps(entries))
    with pytest.raises(ConfigError) as error:
        list(read(path))
    assert str(error.value).startswith(f"{path}: entry 3: {message}")


TALK = json.dumps(talk(1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"[{TALK},\n{TALK},]".encode(), "entry 3: is not JSON: "),
        (f"[{TALK}\n{TALK}]".encode(), "entry 1: is not JSON: '{' where ',' or ']' must stand (line 2)"),
        (f"[{TALK}]\n[{TALK}]".encode(), "entry 1: is not JSON: something stands behind the array's end (line 2)"),
        (f"[{TALK}".encode(), "entry 1: the array has no end (line 1)"),
        (f"{TALK}\n{TALK[:-1]}".encode(), "entry 2: is not JSON: "),
        (f"{TALK}\n\n{TALK[:30]}".encode(), "entry 2: is not JSON: Unterminated string starting at (line 3)"),
        (f"{TALK},\n{TALK}".encode(), "entry 2: is not JSON: "),
        (b"[" * 1_000_000, "entry 1: is not JSON that can be read: "),
        (b'{"a":' * 1_000_000, "entry 1: is not JSON that can be read: "),
        (b'{"a": [' + b'"xxxxxxxxxxxxx",' * (1 << 21), "entry 1: is longer than 16 MiB, and no conversation (line 1)"),
        (b'["\xff"]', "is not UTF-8: "),
        (TALK.encode("utf-16"), "is UTF-16"),
        (gzip.compress(TALK.encode()), "is compressed (gzip)"),
        (b"PAR1....", "is a Parquet file"),
        (b"ARROW1..", "is an Arrow file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a pointer of Git LFS, and not the file"),
        (b"PK\x03\x04....", "is a zip archive"),
        (b"\0\0\0\0", "entry 1: is not JSON: "),
    ],
)
def test_a_file_that_is_no_json(tmp_path: Path, content: bytes, message: str) -> None:
    """Whatever is no JSON, or JSON in another form, is named with the file, and where it can be, entry and line."""
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        list(read(path))
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")


def test_what_can_be_read_but_once(tmp_path: Path) -> None:
    """A pipe, as a shell's process substitution is one, and a folder are refused and not waited for."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ConfigError, match="is no regular file"):
            list(read(path))


def test_figures_that_nobody_asks_for(tmp_path: Path) -> None:
    """NaN, infinity and integers of any size in other keys do not keep a conversation from being read."""
    path = tmp_path / "s.json"
    path.write_text(f'{{"score": NaN, "x": 1e999, "id": {10**30}, {TALK[1:]}')
    assert len(list(read(path))) == 1


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(_JSON, max_size=8),
    st.integers(1, 40),
    st.sampled_from(["array", "indented", "lines", "crlf"]),
    st.sampled_from([(ascii_only, bom) for ascii_only in (True, False) for bom in (True, False)]),
)
def test_values_are_the_files_whatever_is_read_at_a_time(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], chunk: int, form: str, bytes_as: tuple[bool, bool]
) -> None:
    """The values are those of json.loads, wherever the end of what is read at a time falls."""
    ascii_only, bom = bytes_as
    texts = [json.dumps(value, ensure_ascii=ascii_only) for value in values]
    content = json.dumps(values, ensure_ascii=ascii_only, indent=2 if form == "indented" else None)
    if form in {"lines", "crlf"}:
        values = [{"value": value} for value in values]
        content = ("\r\n" if form == "crlf" else "\n").join(f'{{"value": {text}}}' for text in texts)
    path = tmp_path_factory.getbasetemp() / "values"
    path.write_bytes((("\ufeff" if bom else "") + content).encode("utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_CHUNK", chunk)
        found = list(json_values.json_values(path))
    assert found == list(enumerate(values, 1))


class Counting(Words):
    """A tokenizer that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def count(self, messages: Sequence[Message]) -> int:
        """Count the question too."""
        self.asked += 1
        return super().count(messages)


@pytest.mark.parametrize("rounds", [2, 8])
def test_lengths_are_asked_for_once_and_where_requests_need_them(tmp_path: Path, rounds: int) -> None:
    """The tokenizer is asked once for each conversation that is tried and each answer that is sent, and for no rest."""
    made = workload(tmp_path / "s", [talk(i, 20) for i in range(3000)], rounds=rounds, context_tokens=(1000,))
    tokenizer = Counting()
    script = made.script(1000, tokenizer)
    sent = len(script.priming) + sum(len(each.turns) for each in script.conversations)
    users = len(questions(script))
    assert tokenizer.asked <= users + 2 + sent + 1


def test_memory_is_that_of_a_conversation(tmp_path: Path) -> None:
    """A file of strings that one letter makes four bytes wide is read in a tenth of its size, as lines and array."""
    text = json.dumps(talk("w " * 2000 + "\N{GRINNING FACE}"), ensure_ascii=False)
    for form in ("lines", "array"):
        path = tmp_path / form
        many = itertools.repeat(text, 800)
        path.write_text("\n".join(many) if form == "lines" else f"[{','.join(many)}]", encoding="utf-8")
        tracemalloc.start()
        try:
            assert sum(1 for _ in read(path)) == 800
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < path.stat().st_size / 10

"""ShareGPT-style files and Mooncake-style traces: what is read and sent, and what is refused with file and line."""

from __future__ import annotations

import contextlib
import itertools
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.workload import mooncake, sharegpt, trace_rows
from pytest_kvcache.workload.mooncake import MooncakeTrace
from pytest_kvcache.workload.sharegpt import ShareGpt
from tests.unit.test_exact import Words, common


def trace(path: Path, lines: list[Any], **more: object) -> MooncakeTrace:
    """Write a trace and return its workload."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    values = {"kind": "mooncake-trace", "path": path, "context_tokens": (3000,), "duration_s": 10, **more}
    return MooncakeTrace.model_validate(values)


def line(timestamp: int, input_length: int, *hash_ids: int, output_length: int = 5) -> dict[str, Any]:
    """Return a request of a trace."""
    return {
        "timestamp": timestamp,
        "input_length": input_length,
        "output_length": output_length,
        "hash_ids": list(hash_ids),
    }


def test_a_trace_is_sent_as_it_was_taken(tmp_path: Path) -> None:
    """Each line is a request at its time, of its exact length, asking for its answer; the file need not be in order."""
    workload = trace(tmp_path / "t.jsonl", [line(2500, 1100, 1, 2, 3), line(500, 600, 1, 4, output_length=9), ""])
    workload.check()
    turns = [c.turns[0] for c in workload.script(3000, Words()).conversations]
    assert [(t.at_s, t.prompt_tokens, t.answer_tokens) for t in turns] == [(0.0, 600, 9), (2.0, 1100, 5)]
    assert [Words().count(t.messages) for t in turns] == [600, 1100]


def test_what_decides_the_requests_names_the_files_content(tmp_path: Path) -> None:
    """Another trace under the same name is another workload; what only judges a run is no part of it."""
    path = tmp_path / "t.jsonl"
    first = trace(path, [line(0, 600, 1, 2)]).sent(3000)
    lenient = trace(path, [line(0, 600, 1, 2)], allowed_failures=0.5).sent(3000)
    other = trace(path, [line(0, 600, 1, 3)]).sent(3000)
    assert first == lenient
    assert {key for key in first if first[key] != other[key]} == {"content"}


def test_equal_hash_ids_are_equal_prefixes(tmp_path: Path) -> None:
    """Prompts agree in the blocks whose ids are equal from the start on, and in no more."""
    lines = [line(0, 1536, 1, 2, 3), line(1, 1536, 1, 2, 9), line(2, 1536, 7, 2, 3)]
    turns = [c.turns[0].messages[0].text for c in trace(tmp_path / "t", lines).script(3000, Words()).conversations]
    assert common(turns[0], turns[1]) == pytest.approx(1 + 2 * 512, abs=2)
    assert common(turns[0], turns[2]) <= 3


def test_a_trace_of_one_token_answers_does_not_decode(tmp_path: Path) -> None:
    """Decode throughput is judged where an answer of the trace has a second token; a file that is no trace may have."""
    one, five = line(0, 600, 1, 2, output_length=1), line(1, 600, 1, 2)
    assert not trace(tmp_path / "ones", [one, one]).decodes
    assert trace(tmp_path / "mixed", [one, five]).decodes
    assert trace(tmp_path / "broken", ["{no json"]).decodes


def test_speed_duration_and_the_longest_prompt(tmp_path: Path) -> None:
    """`speed` divides the times, later requests and longer prompts are left out."""
    lines = [line(i * 1000, 512 * (i + 1), *range(i + 1)) for i in range(8)]
    workload = trace(tmp_path / "t", lines, speed=2.0, duration_s=3)
    turns = [c.turns[0] for c in workload.script(2048, Words()).conversations]
    assert [(t.at_s, t.prompt_tokens) for t in turns] == [(0.0, 512), (0.5, 1024), (1.0, 1536), (1.5, 2048)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{no json", "line 2: the line: Invalid JSON"),
        ({"timestamp": 1, "input_length": 5, "hash_ids": [1]}, "line 2: output_length: Field required"),
        (line(-1, 5, 1), "line 2: timestamp: Input should be greater than or equal to 0"),
        (line(1, 0, 1), "line 2: input_length: Input should be greater than 0"),
        (line(1, 600, 1), "line 2: hash_ids: 1, but 600 tokens are 2 blocks of 512"),
        ({**line(1, 5, 1), "hash_ids": ["x"]}, "line 2: hash_ids.0: Input should be a valid integer"),
        ("[1]", "line 2: the line: Input should be an object"),
    ],
    ids=["json", "missing", "time", "length", "blocks", "ids", "array"],
)
def test_a_malformed_line_names_file_and_line(tmp_path: Path, bad: Any, message: str) -> None:
    """The error has file, line, key and what is wrong; it comes before anything boots."""
    workload = trace(tmp_path / "t.jsonl", [line(0, 5, 1), bad])
    with pytest.raises(ConfigError) as error:
        workload.check()
    assert f"t.jsonl: {message}" in str(error.value)


def test_a_trace_of_which_nothing_fits(tmp_path: Path) -> None:
    """A trace whose prompts are all longer than the run's limit is refused, and so is one that the template exceeds."""
    with pytest.raises(ConfigError, match="no request of at most 100 tokens"):
        trace(tmp_path / "t", [line(0, 600, 1, 2)], context_tokens=(100,)).check()
    with pytest.raises(
        RunError, match=r"nothing is left to send: 0 requests are longer .* 1 are shorter than the chat"
    ):
        trace(tmp_path / "t", [line(0, 4, 1)]).script(3000, Words())


def talk(*texts: str, start: str = "human", **more: object) -> dict[str, Any]:
    """Return a conversation of a ShareGPT-style file."""
    roles = itertools.cycle(["human", "gpt"] if start == "human" else ["gpt", "human"])
    return {"id": "x", "conversations": [{"from": next(roles), "value": text, **more} for text in texts]}


def shared(path: Path, content: str, **more: object) -> ShareGpt:
    """Write a file and return its workload."""
    path.write_text(content)
    values = {
        "kind": "sharegpt",
        "path": path,
        "users": 2,
        "rounds": 2,
        "qps": 2,
        "context_tokens": (100,),
        "answer_tokens": 6,
        "duration_s": 4,
        **more,
    }
    return ShareGpt.model_validate(values)


#: Each of the run's six users has a conversation of its own.
FILL = [talk(f"fill {i}", "b", f"again {i}", "b") for i in range(4)]
TALKS = [
    talk("q one", "a one two three", "q two", "a " * 20, "more", "more"),
    talk("too", "short"),
    talk("lead", "second q", "second a", "another q", "another a", start="gpt"),
    talk("w " * 200, "long", "x", "y"),
    *FILL,
]


@pytest.mark.parametrize("as_lines", [False, True], ids=["array", "lines"])
def test_conversations_are_sent_on_the_steady_schedule(tmp_path: Path, as_lines: bool) -> None:
    """Users ask the file's questions, with the file's answers as history; too short and too long ones are left out."""
    content = "\n".join(map(json.dumps, TALKS)) if as_lines else json.dumps(TALKS, indent=1)
    workload = shared(tmp_path / "s.json", content)
    workload.check()
    script = workload.script(100, Words())
    turns = sorted(((t.at_s, c.user, t) for c in script.conversations for t in c.turns), key=lambda each: each[0])
    assert [at for at, _, _ in turns] == [i / 2 for i in range(8)]
    texts = {tuple(m.text for m in t.messages) for _, _, t in turns}
    assert {each for each in texts if not each[0].startswith("fill")} <= {
        ("q one",),
        ("q one", "a one two three", "q two"),
        ("second q",),
        ("second q", "second a", "another q"),
    }
    assert not {"too", "w " * 200} & {text for each in texts for text in each}
    asked = {t.messages[-1].text: t.answer_tokens for t in (*(t for _, _, t in turns), *script.priming)}
    assert {asked.get("q one", 4), asked.get("q two", 6)} == {4, 6}  # at most answer_tokens
    assert {"q one", "q two"} & set(asked)
    assert len(script.priming) == 2


def test_lengths_of_answers_that_the_file_has(tmp_path: Path) -> None:
    """`num_tokens` of an answer is taken over the tokenizer's count."""
    content = json.dumps([talk("q", "a", "q", "a", num_tokens=3)] * 6)
    script = shared(tmp_path / "s", content).script(100, Words())
    assert {t.answer_tokens for c in script.conversations for t in c.turns} == {3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"conversations": []},\n{"nothing": 1}\n]', "entry 2: is not an object with a list of messages"),
        ('[\n{"conversations": [{"from": "human"}]}]', "entry 1: has a message without text"),
        ('{"conversations": []}\n{"conversations": [', "entry 2: is not JSON"),
        ('[\n{"conversations": []},\n', "entry 2: is not JSON"),
        (json.dumps([talk("q", "a", num_tokens=-1)]), "entry 1: num_tokens is -1, not a count"),
        (
            json.dumps([talk("q", "a")]),
            "has 0 conversations of 2 rounds; the run needs 6, one for each of its users (1 are shorter)",
        ),
    ],
    ids=["entry", "message", "json", "end", "tokens", "few"],
)
def test_a_malformed_file_names_the_entry(tmp_path: Path, content: str, message: str) -> None:
    """The error has the file, the number of the entry, and what is wrong."""
    with pytest.raises(ConfigError) as error:
        shared(tmp_path / "s.json", content).check()
    assert "s.json" in str(error.value)
    assert message in str(error.value)


def test_conversations_that_do_not_fit(tmp_path: Path) -> None:
    """When too few conversations fit into the run's length, the error says how many do."""
    with pytest.raises(RunError, match="6 conversations of 2 rounds fit into 100 tokens; the run needs 8"):
        shared(tmp_path / "s", json.dumps(TALKS), users=3).script(100, Words())


def said(form: str, *texts: str) -> dict[str, Any]:
    """Return a conversation in one of the forms that files have."""
    keys = ("from", "value") if form == "conversations" else ("role", "content")
    roles = ("human", "gpt") if form == "conversations" else ("user", "assistant")
    parts = form == "parts"
    messages = [
        {keys[0]: roles[i % 2], keys[1]: [{"type": "text", "text": text}] if parts else text, "extra": None}
        for i, text in enumerate(texts)
    ]
    return {"id": 7, "messages" if parts else form: messages}


@pytest.mark.parametrize("form", ["conversations", "messages", "conversation", "parts"])
@pytest.mark.parametrize("as_lines", [False, True], ids=["array", "lines"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n  "])
def test_every_form_of_a_file(tmp_path: Path, form: str, as_lines: bool, start: str) -> None:
    """Arrays and lines, with or without a byte order mark, in each form of a conversation, are read alike."""
    entries = [said(form, f"q {i} 😀", "a", "more", "b") for i in range(3)]
    content = start + ("\n".join(map(json.dumps, entries)) if as_lines else json.dumps(entries))
    path = tmp_path / "s.json"
    path.write_text(content, encoding="utf-8")
    found = list(sharegpt.read(path))
    assert [[(s.role, s.text) for s in each] for each in found] == [
        [("user", f"q {i} 😀"), ("assistant", "a"), ("user", "more"), ("assistant", "b")] for i in range(3)
    ]


@pytest.mark.parametrize("role", ["human", "User", "prompter"])
@pytest.mark.parametrize("other", ["gpt", "assistant", "ChatGPT", "bing", "bard", "model"])
def test_roles_of_both_sides(tmp_path: Path, role: str, other: str) -> None:
    """Every name that files give to the two sides is known, in whatever case."""
    path = tmp_path / "s.json"
    path.write_text(
        json.dumps(
            [
                {
                    "conversations": [
                        {"from": "system", "value": "s"},
                        {"from": role, "value": "q"},
                        {"from": other, "value": "a"},
                    ]
                }
            ]
        )
    )
    assert [[s.role for s in each] for each in sharegpt.read(path)] == [["user", "assistant"]]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    """A file that is too small says what of it cannot be used, with the roles that are known."""
    odd = [talk("q", "a", "q", "a") for _ in range(4)]
    odd[0]["conversations"][2]["from"] = "tool"
    odd[1]["conversations"][1]["from"] = "human"
    with pytest.raises(ConfigError) as error:
        shared(tmp_path / "s.json", json.dumps([*odd, talk("q", "a")])).check()
    assert "has 2 conversations of 2 rounds; the run needs 6" in str(error.value)
    assert "1 are shorter; 1 have two messages of one side in a row; some have other roles than" in str(error.value)
    assert "human, model, prompter, user: 1 tool" in str(error.value)


def test_context_lengths_share_no_conversation(tmp_path: Path) -> None:
    """The load of a second length on a boot finds nothing of the first one's in a cache, whoever its users are."""
    content = json.dumps([talk(f"q {i}", "a", f"r {i}", "b") for i in range(18)])
    workload = shared(tmp_path / "s.json", content, context_tokens=(100, 200, 300))
    workload.check()
    sent = []
    for at, length in enumerate(workload.context_tokens):
        script = workload.script(length, Words(), first_user=at * 1000)
        turns = [*script.priming, *(t for c in script.conversations for t in c.turns)]
        sent.append({t.messages[0].text for t in turns})
        firsts = {c.user: {t.messages[0].text for t in c.turns} for c in script.conversations}
        assert all(len(texts) == 1 for texts in firsts.values())
        assert len({text for texts in firsts.values() for text in texts}) == len(firsts)
    assert not sent[0] & sent[1]
    assert not sent[1] & sent[2]
    assert not sent[0] & sent[2]
    with pytest.raises(ConfigError, match="has 17 conversations of 2 rounds; the run needs 6 at each of 3 lengths"):
        shared(tmp_path / "t.json", json.dumps(json.loads(content)[:17]), context_tokens=(100, 200, 300)).check()


def test_what_of_a_trace_is_not_sent_is_told(tmp_path: Path) -> None:
    """Requests too long for the run or the model, or shorter than the template, are counted by their tokens."""
    lines = [line(0, 600, 1, 2), line(1, 4, 1), line(2, 2000, 1, 2, 3, 4), line(3, 900, 1, 2, output_length=200)]
    script = trace(tmp_path / "t", lines, context_tokens=(1500,)).script(1500, Words(max_model_len=1000))
    assert [c.turns[0].prompt_tokens for c in script.conversations] == [600]
    assert script.left_out == (
        "2 requests are longer than 1000 tokens, or than the model takes with their answers, and 1 are shorter than "
        "the chat template (10): 82.88% of the prompt tokens are left out"
    )
    assert trace(tmp_path / "t", lines[:1]).script(3000, Words()).left_out == ""


def test_blocks_and_seconds_of_bailian(tmp_path: Path) -> None:
    """Blocks of 16 tokens and timestamps in seconds are as the profile says; a fraction of a millisecond is refused."""
    row = {
        "chat_id": 1,
        "parent_chat_id": -1,
        "type": "text",
        "turn": 1,
        "timestamp": 61.114,
        "input_length": 40,
        "output_length": 3,
        "hash_ids": [1, 2, 3],
    }
    lines = [row, {**row, "timestamp": 62.5, "hash_ids": [1, 2, 9]}]
    workload = trace(tmp_path / "t", lines, block_tokens=16, time_unit="s")
    workload.check()
    turns = [c.turns[0] for c in workload.script(3000, Words()).conversations]
    assert [t.at_s for t in turns] == [0.0, pytest.approx(1.386)]
    assert [Words().count(t.messages) for t in turns] == [40, 40]
    with pytest.raises(ConfigError, match=r"line 1: timestamp: 61.114 has a fraction, so that it may be seconds"):
        trace(tmp_path / "t", lines, block_tokens=16).check()
    with pytest.raises(ConfigError, match=r"hash_ids: 3, but 40 tokens are 1 blocks of 512(.|\n)*block_tokens"):
        trace(tmp_path / "t", lines, time_unit="s").check()
    assert not {"block_tokens", "time_unit"} & set(trace(tmp_path / "t", [line(0, 5, 1)]).sent(3000))


@pytest.mark.parametrize("key", sorted(trace_rows._CHANGING))
def test_keys_that_change_what_is_sent_are_refused(tmp_path: Path, key: str) -> None:
    """A row that another tool would send otherwise is named and never silently changed; an empty key is none."""
    with pytest.raises(ConfigError, match=f"line 1: the line: {key} is not supported"):
        trace(tmp_path / "t", [{**line(0, 5, 1), key: 5}]).check()
    trace(tmp_path / "t", [{**line(0, 5, 1), key: None}]).check()


def test_aliases_and_a_byte_order_mark(tmp_path: Path) -> None:
    """Other names of the lengths are read, and a byte order mark is none of the first line."""
    path = tmp_path / "t"
    workload = trace(
        path,
        [
            {"timestamp": 0, "isl": 30, "osl": 2, "hash_ids": [1]},
            {"timestamp": 1, "input_tokens": 30, "output_tokens": 2, "hash_ids": [1]},
        ],
    )
    path.write_text("\ufeff" + path.read_text())
    workload.check()
    assert [line.input_length for _, line in mooncake.read(path)] == [30, 30]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_figures_that_are_no_numbers(tmp_path: Path, number: str) -> None:
    """Infinity, as JSON text may write it, is no time."""
    row = json.dumps(line(77, 5, 1)).replace("77", number)
    with pytest.raises(ConfigError, match="line 1"):
        trace(tmp_path / "t", [row]).check()


@pytest.mark.parametrize("kind", ["trace", "sharegpt"])
def test_files_warm_up_too(tmp_path: Path, kind: str) -> None:
    """`warmup_requests` is sent for every kind, with other texts for each load on a boot."""
    made: Any = (
        trace(tmp_path / "t", [line(0, 600, 1, 2)], warmup_requests=3)
        if kind == "trace"
        else shared(tmp_path / "s", json.dumps([talk("q", "a", "q", "a")] * 6), warmup_requests=3)
    )
    length = made.context_tokens[0]
    one, two = (made.script(length, Words(), first_user=n).warm_up for n in (0, 1000))
    assert len(one) == len(two) == 3
    assert not {t.messages[0].text for t in one} & {t.messages[0].text for t in two}


class Counting(Words):
    """A tokenizer that counts how often it is asked."""

    asked = 0

    def count(self, messages: Any) -> int:
        """Count the question too."""
        Counting.asked += 1
        return super().count(messages)


def test_no_more_is_read_than_is_needed(tmp_path: Path) -> None:
    """What comes behind the conversations that a run needs is not read, and nothing is tokenized for it."""
    entries = "\n".join(json.dumps(talk(f"q {i}", "a", f"r {i}", "b")) for i in range(6))
    workload = shared(tmp_path / "s.json", entries + "\n" + "this is no JSON " * 1000)
    workload.check()
    Counting.asked = 0
    workload.script(100, Counting())
    assert Counting.asked <= 6 * 4


def test_a_large_file_is_not_held(tmp_path: Path) -> None:
    """Reading takes memory for a conversation and not for the file, though one letter of it needs four bytes."""
    path = tmp_path / "s.json"
    entry = json.dumps(talk("w " * 5000 + "😀", "a " * 5000, "q", "b"), ensure_ascii=False)
    with path.open("w", encoding="utf-8") as out:
        out.write("[" + ",\n".join([entry] * 800) + "]")
    tracemalloc.start()
    try:
        assert sum(1 for _ in sharegpt.read(path)) == 800
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 16e6
    assert peak < path.stat().st_size / 10


@pytest.mark.parametrize(
    "bad", ["\u00e9".encode("latin-1"), b"\xed\xa0\xbd", b"\xf0\x9f\x98"], ids=["latin-1", "half", "cut"]
)
@pytest.mark.parametrize("before", [0, 1, 3, 5000])
@pytest.mark.parametrize("read", [sharegpt.read, mooncake.read])
def test_bytes_that_are_no_utf8(tmp_path: Path, read: Callable[[Path], Any], before: int, bad: bytes) -> None:
    """A file in another encoding is refused with the line of its first byte that is no UTF-8."""
    good = json.dumps({**line(0, 5, 1), "conversations": [], "user": "\u00e9\U0001f600"}, ensure_ascii=False) + "\r\n"
    path = tmp_path / "t"
    path.write_bytes(good.encode() * before + b'{"user": "' + bad)
    with pytest.raises(ConfigError, match=rf"t: is not UTF-8: .* \(line {before + 1}\)"):
        list(read(path))


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_no_content_makes_it_fall_over(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    """Whatever a file holds, reading it yields entries or an error that names it."""
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_text(content, encoding="utf-8", errors="replace")
    for read in (sharegpt.read, mooncake.read):
        with contextlib.suppress(ConfigError):
            list(read(path))

"""Traces of several tools: rows in the shape of each are sent as it means them, or refused with the line's number."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.workload.mooncake import MooncakeTrace
from pytest_kvcache.workload.script import Script, Turn
from pytest_kvcache.workload.trace_rows import FORMATS
from tests.unit.test_exact import Words, common
from tests.unit.test_traces import trace


def row(input_length: int, output_length: int = 5, **more: Any) -> dict[str, Any]:
    """Return a row with lengths, and what else it has."""
    return {"input_length": input_length, "output_length": output_length, **more}


#: What a turn is sent as: time, delay after the answer before it, length of prompt and answer.
Sent = tuple[Any, Any, int, int]

#: Rows in the shape of each tool's own, how the tool is named, and what is sent: one list for each conversation.
SUPPORTED: dict[str, tuple[dict[str, object], list[dict[str, Any]], list[list[Sent]]]] = {
    "mooncake": (
        {},
        [
            row(655, 52, timestamp=27_482, hash_ids=[46, 47]),
            row(6758, 500, timestamp=30_535, hash_ids=list(range(14))),
        ],
        [[(0.0, None, 655, 52)], [(3.053, None, 6758, 500)]],
    ),
    "mooncake, one row a session": (
        {},
        [row(40, timestamp=0, hash_ids=[1], session_id="a"), row(40, timestamp=500, hash_ids=[1], session_id="b")],
        [[(0.0, None, 40, 5)], [(0.5, None, 40, 5)]],
    ),
    "bailian": (
        {"trace_format": "bailian"},
        [
            row(40, 3, chat_id=159, parent_chat_id=-1, timestamp=61.114, type="text", turn=1, hash_ids=[1, 2, 3]),
            row(52, 2, chat_id=160, parent_chat_id=159, timestamp=62.5, type="file", turn=2, hash_ids=[1, 2, 4, 5]),
        ],
        [[(0.0, None, 40, 3)], [(1.386, None, 52, 2)]],
    ),
    "bailian without hash ids": (
        {"trace_format": "bailian"},
        [row(40, 3, chat_id=1, timestamp=0, hash_ids=[]), row(40, 3, chat_id=2, timestamp=2)],
        [[(0.0, None, 40, 3)], [(2.0, None, 40, 3)]],
    ),
    "aiperf, delays": (
        {"trace_format": "aiperf"},
        [
            row(300, 40, session_id="abc-123", timestamp=1000),
            row(150, 20, session_id="abc-123", delay=2000),
            row(60, 20, session_id="abc-123"),
        ],
        [[(0.0, None, 300, 40), (None, 2.0, 490, 20), (None, 0.0, 570, 20)]],
    ),
    "aiperf, times": (
        {"trace_format": "aiperf"},
        [
            row(300, 40, session_id="a", timestamp=0.5, hash_ids=[7]),
            row(600, 20, session_id="b", timestamp=100.5, hash_ids=[7, 8]),
            row(50, 20, session_id="a", timestamp=4000.5, hash_ids=[9]),
        ],
        [[(0.0, None, 300, 40), (4.0, None, 390, 20)], [(0.1, None, 600, 20)]],
    ),
    "aiperf, nothing but lengths": (
        {"trace_format": "aiperf", "concurrency": 3},
        [row(10 + i, 4) for i in range(4, 7)],
        [[(None, 0.0, 10 + i, 4)] for i in range(4, 7)],
    ),
    "dynamo": (
        {"trace_format": "dynamo"},
        [
            row(2048, 128, session_id="session-a", timestamp=1000, hash_ids=[1, 2, 3, 4]),
            row(2560, 128, session_id="session-a", delay_ms=50, hash_ids=[1, 2, 3, 4, 5]),
            row(1024, 64, session_id="session-b", timestamp=1010, hash_ids=[9, 10]),
            row(1536, 64, session_id="session-b", timestamp=1060, hash_ids=[9, 10, 11]),
        ],
        [
            [(0.0, None, 2048, 128), (None, 0.05, 2560, 128)],
            [(0.01, None, 1024, 64), (None, 0.05, 1536, 64)],
        ],
    ),
    "dynamo, other names": (
        {"trace_format": "dynamo"},
        [{"created_time": 5.5, "input_tokens": 40, "output_tokens": 3, "hash_ids": [1], "request_id": "r"}],
        [[(0.0, None, 40, 3)]],
    ),
    "dynamo, concurrency": (
        {"trace_format": "dynamo", "concurrency": 2},
        [
            row(40, session_id="a", timestamp=9000, hash_ids=[1]),
            row(50, session_id="b", timestamp=5, hash_ids=[2]),
            row(60, session_id="a", timestamp=9500, hash_ids=[1]),
            row(60, session_id="b", delay=7, timestamp=6, hash_ids=[2]),
        ],
        [[(None, 0.0, 40, 5), (None, 0.5, 60, 5)], [(None, 0.0, 50, 5), (None, 0.007, 60, 5)]],
    ),
    "dynamo-delta": (
        {"trace_format": "dynamo-delta"},
        [
            row(500, 100, session_id="a", timestamp=0, hash_ids=[1]),
            row(400, 50, session_id="a", timestamp=3000, hash_ids=[2]),
        ],
        [[(0.0, None, 500, 100), (None, 3.0, 1000, 50)]],
    ),
}


def sent(script: Script) -> list[list[Sent]]:
    """Return what a script sends, in the form of the table."""

    def shown(turn: Turn) -> Sent:
        at = pytest.approx(turn.at_s) if turn.after_s is None else None
        after = None if turn.after_s is None else pytest.approx(turn.after_s)
        return (at, after, turn.prompt_tokens or 0, turn.answer_tokens)

    return [[shown(turn) for turn in c.turns] for c in script.conversations]


@pytest.mark.parametrize("name", SUPPORTED)
def test_rows_are_sent_as_their_tool_means_them(tmp_path: Path, name: str) -> None:
    """Times, delays and lengths of each tool's rows become those of the requests, to the token."""
    said, rows, expected = SUPPORTED[name]
    workload = trace(tmp_path / "t", rows, context_tokens=(9000,), **said)
    workload.check()
    script = workload.script(9000, Words())
    assert sent(script) == expected
    assert script.concurrency == said.get("concurrency")
    for conversation in script.conversations:
        assert [turn.round for turn in conversation.turns] == list(range(1, len(conversation.turns) + 1))
        for turn in conversation.turns:
            assert Words().count(turn.messages) == turn.prompt_tokens


#: Rows that are refused: how the trace is named, the rows, and the error behind the file's name.
REFUSED: dict[str, tuple[dict[str, object], list[dict[str, Any]], str]] = {
    "a session without a tool": (
        {},
        [row(40, timestamp=0, session_id="a"), row(9, timestamp=0), row(40, timestamp=9, session_id="a")],
        "line 3: session_id: is that of line 1 too, and tools differ in what later rows mean",
    ),
    "no time": ({}, [row(40, timestamp=0), row(40, hash_ids=[1])], "line 2: timestamp: Field required"),
    "no first time": (
        {"trace_format": "aiperf"},
        [row(40, session_id="a"), row(40, session_id="a", delay=5)],
        "line 1: timestamp: Field required",
    ),
    "a delay of a first turn": (
        {"trace_format": "aiperf"},
        [row(40, session_id="a", timestamp=0, delay=5)],
        "line 1: delay: is of a first turn",
    ),
    "a delay of a row alone": ({}, [row(40, timestamp=0, delay_ms=5)], "line 1: delay: is of a first turn"),
    "a delay beside a time": (
        {"trace_format": "aiperf"},
        [row(40, session_id="a", timestamp=0), row(40, session_id="a", timestamp=9, delay=5)],
        "line 2: delay: is beside a timestamp",
    ),
    "times that go back": (
        {"trace_format": "dynamo"},
        [row(40, session_id="a", timestamp=9), row(50, session_id="a", timestamp=3)],
        "line 2: timestamp: is before that of the session's row before it",
    ),
    "a gap after no time": (
        {"trace_format": "dynamo", "concurrency": 1},
        [row(40, session_id="a"), row(50, session_id="a", timestamp=3)],
        "line 2: timestamp: the rows of the session before it have none",
    ),
    "hash ids in some rows of a session": (
        {"trace_format": "dynamo"},
        [row(40, session_id="a", timestamp=9, hash_ids=[1]), row(50, session_id="a", timestamp=13)],
        "line 2: hash_ids: some rows of the session have them and some have not",
    ),
    "bailian as mooncake": (
        {},
        [row(40, timestamp=1, chat_id=5, parent_chat_id=-1)],
        "line 1: chat_id: is of Bailian's traces",
    ),
    "bailian's blocks as mooncake's": (
        {},
        [row(521, timestamp=61.114, chat_id=5, hash_ids=list(range(33)))],
        "line 1: hash_ids: 33, but 521 tokens are 2 blocks of 512",
    ),
    "mooncake as bailian": (
        {"trace_format": "bailian"},
        [row(655, timestamp=0, hash_ids=[1, 2])],
        "line 1: hash_ids: 2, but 655 tokens are 41 blocks of 16",
    ),
    "one thing under two names": (
        {},
        [{**row(40, timestamp=0), "input_tokens": 41}],
        "line 1: the line: input_length and input_tokens say the same",
    ),
    "a delay with a fraction": (
        {"concurrency": 1},
        [row(40), row(40, delay=0.5)],
        "line 2: delay: 0.5 has a fraction, so that it may be seconds",
    ),
    "a delay that is none": (
        {"trace_format": "aiperf"},
        [row(40, session_id="a", timestamp=9), row(40, session_id="a", delay=-1)],
        "line 2: delay: Input should be greater than or equal to 0",
    ),
    "aiperf's prompts": (
        {"trace_format": "aiperf"},
        [{"text_input": "Hello", "output_length": 4}],
        "line 1: the line: text_input is not supported (its row has the prompt itself)",
    ),
    "dynamo's workflows": (
        {"trace_format": "dynamo"},
        [row(40, timestamp=0, hash_ids=[1], request_id="a"), row(40, timestamp=0, hash_ids=[1], wait_for=["a"])],
        "line 2: the line: wait_for is not supported (its row waits for other rows)",
    ),
    "an answer without a length": (
        {"trace_format": "aiperf"},
        [{"input_length": 40, "timestamp": 0}],
        "line 1: output_length: Field required\n  -> give it that name, or output_tokens or osl",
    ),
    "bailian as aiperf": (
        {"trace_format": "aiperf"},
        [row(40, timestamp=61.114, chat_id=5)],
        "line 1: chat_id: is of Bailian's traces",
    ),
    "a delay in milliseconds among seconds": (
        {"trace_format": "aiperf", "time_unit": "s"},
        [row(40, session_id="a", timestamp=1.5), row(40, session_id="a", delay_ms=2000)],
        "line 2: delay_ms: is in milliseconds, and the times of the trace are in seconds",
    ),
    "blocks of another size, by the row's own word": (
        {},
        [row(40, timestamp=0, hash_ids=[1], block_size=64)],
        "line 1: block_size: is 64, and a hash id is taken for 512 tokens",
    ),
    "a hash of more than 64 bits": (
        {},
        [row(40, timestamp=0, hash_ids=[1 << 64])],
        "line 1: hash_ids.0: Input should be less than 18446744073709551616",
    ),
    "no rows": ({}, [], "has no rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_no_tool_means_so_are_refused(tmp_path: Path, name: str) -> None:
    """What cannot be sent as it was meant is an error with file, line and key, and nothing is sent otherwise."""
    said, rows, message = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        trace(tmp_path / "t.jsonl", rows, **said).check()
    assert f"t.jsonl: {message}" in str(error.value)


@pytest.mark.parametrize("trace_format", FORMATS)
def test_rows_without_hash_ids_share_nothing(tmp_path: Path, trace_format: str) -> None:
    """Of rows alone that have no hash ids nothing is known to be shared, and their prompts have no text in common."""
    rows = [row(600, timestamp=i) for i in range(3)]
    script = trace(tmp_path / "t", rows, trace_format=trace_format).script(3000, Words())
    prompts = [c.turns[0].messages[0].text for c in script.conversations]
    assert common(prompts[0], prompts[1]) <= 3
    assert common(prompts[1], prompts[2]) <= 3


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.tuples(st.integers(11, 900), st.integers(1, 60)), min_size=1, max_size=5),
    hashed=st.booleans(),
    whole=st.booleans(),
    delays=st.booleans(),
)
def test_later_prompts_contain_the_earlier_ones(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[tuple[int, int]], hashed: bool, whole: bool, delays: bool
) -> None:
    """A turn's prompt begins with the text of the turn before it, and has the trace's length, whatever the lengths."""
    rows, total = [], 0
    for i, (new, answer) in enumerate(lengths):
        total += new
        said = total if whole else new
        blocks = range(-(-said // 512))
        hash_ids = [block if whole else 1000 * i + block for block in blocks] if hashed else []
        later = {"delay": 7} if delays and i else {} if i else {"timestamp": 3}
        rows.append(row(said, answer, session_id="s", hash_ids=hash_ids, **later))
    path = tmp_path_factory.getbasetemp() / "lengths"
    form = "dynamo" if whole else "dynamo-delta"
    script = trace(path, rows, trace_format=form, context_tokens=(10_000,)).script(10_000, Words())
    (conversation,) = script.conversations
    assert len(conversation.turns) == len(rows)
    before = ""
    for turn in conversation.turns:
        assert Words().count(turn.messages) == turn.prompt_tokens
        text = " ".join(message.text for message in turn.messages)
        assert text.startswith(before)
        before = text


def test_a_session_ends_before_a_turn_that_cannot_be_sent(tmp_path: Path) -> None:
    """Turns after one that is too long are not sent either, and are told by their share."""
    rows = [
        row(500, 100, session_id="a", timestamp=0),
        row(500, 50, session_id="a", delay=1),
        row(20, 50, session_id="a", delay=1),
        row(100, 50, session_id="b", timestamp=5),
        row(4, 50, session_id="b", delay=1),
    ]
    script = trace(tmp_path / "t", rows, trace_format="aiperf", context_tokens=(1000,)).script(1000, Words())
    assert [[t.prompt_tokens for t in c.turns] for c in script.conversations] == [[500], [100]]
    assert script.left_out.startswith("1 requests are longer than 1000 tokens")
    assert "and 1 are shorter than the chat template (10), and 1 are turns that come after one of those" in (
        script.left_out
    )


def test_speed_divides_delays(tmp_path: Path) -> None:
    """A speed of 2 halves the delays as well as the times, and `time_unit` holds for both."""
    rows = [row(40, session_id="a", timestamp=1), row(40, session_id="a", delay=3)]
    script = trace(tmp_path / "t", rows, trace_format="aiperf", speed=2.0, time_unit="s").script(3000, Words())
    assert [t.after_s for t in script.conversations[0].turns] == [None, 1.5]


def test_what_decides_the_requests_has_the_format(tmp_path: Path) -> None:
    """Another format or concurrency makes another workload; the values of Mooncake's own traces are as if not said."""
    rows = [row(40, timestamp=0)]
    plain = trace(tmp_path / "t", rows).sent(3000)
    assert trace(tmp_path / "t", rows, trace_format="mooncake", block_tokens=512).sent(3000) == plain
    for more in ({"trace_format": "dynamo"}, {"concurrency": 2}, {"block_tokens": 64}, {"time_unit": "ms"}):
        changed = trace(tmp_path / "t", rows, **more).sent(3000)
        assert {key for key in changed if changed.get(key) != plain.get(key)} == set(more)


@pytest.mark.parametrize(("concurrency", "workers", "expected"), [(3, None, 1), (3, 8, 3), (1, 2, 1), (None, 8, 8)])
def test_load_processes_share_a_concurrency(
    tmp_path: Path, concurrency: int | None, workers: int | None, expected: int
) -> None:
    """There are never more load processes than sessions under way."""
    rows = [row(40, timestamp=0) for _ in range(20)]
    workload: MooncakeTrace = trace(tmp_path / "t", rows, concurrency=concurrency, workers=workers)
    assert workload.worker_count(workload.script(3000, Words())) == expected


_NUMBERS = ("timestamp", "input_length", "output_length", "delay", "hash_ids")


@pytest.mark.parametrize("key", _NUMBERS)
@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN", "-1", "true", '"5"', "[]", "{}", "1" * 400, "1" * 5000])
def test_figures_that_are_none(tmp_path: Path, key: str, value: str) -> None:
    """A figure that is no number, or of another type, is refused with its line and key, under each of its names."""
    if (key, value) == ("hash_ids", "-1"):
        return  # an id is a name, and no count
    first = json.dumps(row(40, timestamp=0, session_id="a"))
    said = {"timestamp": 7, "input_length": 40, "output_length": 5, "delay": 3, "hash_ids": [1]}
    if key != "timestamp":
        del said["timestamp"]
    else:
        del said["delay"]
    line = json.dumps({**said, "session_id": "a", key: "FIGURE"})
    line = line.replace('"FIGURE"', f"[{value}]" if key == "hash_ids" else value)
    with pytest.raises(ConfigError, match=rf"t: line 2: (the line: )?({key}|Invalid JSON)"):
        trace(tmp_path / "t", [first, line], trace_format="aiperf").check()


@pytest.mark.parametrize("value", ["1e999", "NaN", "-Infinity", "1" * 400, '"\\ud800"', "[[[]]]", "null", "true"])
@pytest.mark.parametrize("key", ["user", "request_id", "type", "parent_chat_id", "turn"])
def test_keys_that_nobody_asks_for(tmp_path: Path, key: str, value: str) -> None:
    """What other keys hold does not matter, whatever the tool's JSON writer made of it."""
    line = json.dumps({**row(40, timestamp=0), key: "X"}).replace('"X"', value)
    trace(tmp_path / "t", [line]).check()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\x1f\x8b\x08", "is compressed (gzip)"),
        (b"PAR1", "is a Parquet file"),
        (b"\xff\xfe{", "is UTF-16"),
        (b"{\xe9}", "is not UTF-8"),
    ],
)
def test_files_that_hold_no_trace(tmp_path: Path, start: bytes, message: str) -> None:
    """A file in another format is named as what it is."""
    workload = trace(tmp_path / "t", [])
    (tmp_path / "t").write_bytes(start)
    with pytest.raises(ConfigError, match=re.escape(message)):
        workload.check()
    (tmp_path / "t").unlink()
    with pytest.raises(ConfigError, match="t: cannot be read: No such file"):
        workload.check()

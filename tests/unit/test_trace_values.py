"""Traces with odd values and in odd files: sent as they say, or refused with the line, never with a traceback."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.workload.trace_rows import FORMATS
from tests.unit.test_exact import Words
from tests.unit.test_trace_formats import row
from tests.unit.test_traces import trace


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([row(40, timestamp=0)]),
        json.dumps([row(40, timestamp=0)], indent=1),
        json.dumps(row(40, timestamp=0), indent=1),
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10",
        "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18",
        "<!DOCTYPE html>",
    ],
)
def test_a_trace_in_another_form_than_lines(tmp_path: Path, content: str) -> None:
    """An array, a row over several lines, a table as Azure's or BurstGPT's: the error says what form is read."""
    with pytest.raises(ConfigError, match=r"t: line 1: the line: [^\n]*\n  -> write the trace as JSON lines"):
        trace(tmp_path / "t", [content]).check()


def test_hash_ids_are_hashes_of_64_bits(tmp_path: Path) -> None:
    """Ids may be signed or not, and each is a block of its own."""
    ids = [-(1 << 63), -1, 0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    rows = [row(40, timestamp=i, hash_ids=[hash_id]) for i, hash_id in enumerate(ids)]
    made = trace(tmp_path / "t", rows)
    made.check()
    prompts = {conversation.turns[0].messages[0].text for conversation in made.script(3000, Words()).conversations}
    assert len(prompts) == len(ids)


_KEYS = ("timestamp", "input_length", "output_length", "delay", "delay_ms", "hash_ids", "session_id", "block_size")
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.integers(0, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None, max_examples=300)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=3), min_size=1, max_size=3),
    trace_format=st.sampled_from(list(FORMATS)),
    concurrency=st.sampled_from([None, 2]),
)
def test_no_value_of_a_known_key_makes_a_trace_fall_over(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    trace_format: str,
    concurrency: int | None,
) -> None:
    """Whatever values rows have under the keys that are read, the trace is sent or refused with file and line."""
    path = tmp_path_factory.getbasetemp() / "values.jsonl"
    lines = [{**row(20, timestamp=5, session_id="s"), **more} for more in rows]
    made = trace(path, lines, trace_format=trace_format, concurrency=concurrency)
    with contextlib.suppress(ConfigError, RunError):
        made.check()
        assert made.script(3000, Words()).conversations

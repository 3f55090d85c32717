"""A salt in every prompt: other words of the same length, from the first ones on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.mooncake import MooncakeTrace
from pytest_kvcache.workload.salted import salted_script
from pytest_kvcache.workload.script import Script, Turn
from pytest_kvcache.workload.sharegpt import ShareGpt
from tests.unit.test_exact import VOCABULARY, Words, workload

#: Words within which two prompts of different salts must differ: fewer than a block of any device cache.
_FIRST = 8


def sharegpt(folder: Path) -> ShareGpt:
    """Return a workload of a file with conversations that all begin alike."""
    turns = [{"from": who, "value": f"the same words as ever {n}"} for n, who in enumerate(("human", "gpt") * 3)]
    path = folder / "talks.json"
    path.write_text(json.dumps([{"conversations": turns} for _ in range(40)]))
    return ShareGpt.model_validate(
        {
            "path": path,
            "users": 2,
            "rounds": 2,
            "qps": 2,
            "context_tokens": (500,),
            "answer_tokens": 5,
            "duration_s": 2,
            "warmup_requests": 0,
        }
    )


def trace(folder: Path) -> MooncakeTrace:
    """Return a workload of a trace of two requests with the same hash ids."""
    path = folder / "trace.jsonl"
    row = {"input_length": 40, "output_length": 5, "hash_ids": [1, 2]}
    path.write_text("".join(json.dumps({"timestamp": at, **row}) + "\n" for at in (0, 100)))
    return MooncakeTrace.model_validate(
        {"path": path, "context_tokens": (100,), "duration_s": 2, "warmup_requests": 0, "block_tokens": 20}
    )


def made(kind: str, folder: Path) -> Workload:
    """Return a workload of a kind."""
    if kind == "sharegpt":
        return sharegpt(folder)
    if kind == "mooncake":
        return trace(folder)
    return workload(mode=kind, **({"question_tokens": 32} if kind == "compat" else {}))


def turns(script: Script) -> list[Turn]:
    """Return all that a script sends, but the warm-up."""
    return [*script.priming, *(turn for each in script.conversations for turn in each.turns[:1])]


@pytest.mark.parametrize("kind", ["exact", "compat", "sharegpt", "mooncake"])
def test_no_prompt_of_one_salt_begins_like_one_of_another(kind: str, tmp_path: Path) -> None:
    """Whatever the workload, prompts of two salts differ from their first words on, and are the same for one salt."""
    source = made(kind, tmp_path)
    length = source.context_tokens[0]
    tokenizer = Words() if source.needs_tokenizer else None
    first, again, other = (
        turns(salted_script(source, length, tokenizer, salt=salt, first_user=0)) for salt in ("a1", "a1", "b2")
    )
    texts = [[turn.messages[0].text for turn in each] for each in (first, again, other)]
    assert texts[0] == texts[1]
    beginnings = [{" ".join(text.split()[:_FIRST]) for text in each} for each in texts]
    assert not beginnings[0] & beginnings[2]
    assert all(text.split()[0] in {"a1", "Note:"} for text in texts[0])


def test_exact_lengths_stay_exact() -> None:
    """Prompts of exact length have that length with any salt, by the served tokenizer's own count."""
    source, tokenizer = workload(), Words()
    for turn in turns(salted_script(source, 200, tokenizer, salt="a1", first_user=0)):
        assert turn.prompt_tokens == tokenizer.count(turn.messages)


def test_a_prefix_makes_lengths_unknown(tmp_path: Path) -> None:
    """Where the salt is a prefix, no length is promised that the server would not count."""
    script = salted_script(trace(tmp_path), 100, Words(), salt="a1", first_user=0)
    assert all(turn.prompt_tokens for each in script.conversations for turn in each.turns)
    script = salted_script(sharegpt(tmp_path), 500, Words(), salt="a1", first_user=0)
    assert all(turn.prompt_tokens is None for each in script.conversations for turn in each.turns)


def test_without_a_salt_nothing_changes() -> None:
    """A booted pair gets the prompts that it always got."""
    source = workload()
    plain = source.script(200, Words(), first_user=0)
    assert [t.messages for t in turns(salted_script(source, 200, Words(), salt="", first_user=0))] == [
        t.messages for t in turns(plain)
    ]
    words = {word for turn in turns(plain) for message in turn.messages for word in message.text.split()}
    assert words <= {*VOCABULARY, "Note:"}

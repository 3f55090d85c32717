"""Mode exact: lengths in tokens, texts that share and repeat only what they should, users with a history."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import RunError
from pytest_kvcache.workload.multi_round import MultiRoundQa
from pytest_kvcache.workload.script import Message, Script, Turn
from pytest_kvcache.workload.tokens import Texts, texts

VOCABULARY = tuple("".join(letters) for letters in itertools.product("bcdfg", "aeiou", "klmnp", "aeiou"))


@dataclass(frozen=True)
class Words:
    """A tokenizer of words, with a template of fixed size."""

    per_chat: int = 5
    per_message: int = 4
    max_model_len: int | None = None

    def count(self, messages: Sequence[Message]) -> int:
        """Count words, and the template's tokens."""
        return self.per_chat + sum(self.per_message + len(m.text.split()) for m in messages)

    def words(self) -> tuple[str, ...]:
        """Return the vocabulary."""
        return VOCABULARY


def workload(**more: object) -> MultiRoundQa:
    """Return a small workload."""
    values: dict[str, object] = {
        "users": 3,
        "rounds": 4,
        "qps": 2,
        "shared_prompt_tokens": 60,
        "question_tokens": 24,
        "context_tokens": (200,),
        "answer_tokens": 10,
        "duration_s": 10,
        **more,
    }
    return MultiRoundQa.model_validate(values)


def turns(script: Script) -> list[tuple[int, Turn]]:
    """Return all turns with their users."""
    return [(c.user, t) for c in script.conversations for t in c.turns]


@settings(deadline=None, max_examples=25)
@given(
    st.fixed_dictionaries(
        {
            "users": st.integers(1, 6),
            "rounds": st.integers(2, 6),
            "shared_prompt_tokens": st.integers(0, 90),
            "context_tokens": st.tuples(st.integers(100, 400)),
            "answer_tokens": st.integers(1, 12),
        }
    ),
    st.integers(0, 20),
)
def test_every_prompt_has_its_length(values: dict[str, Any], per_chat: int) -> None:
    """Whatever parameters and template: shared + context + question, and answer + question for each round more."""
    w, tokenizer = workload(**values), Words(per_chat)
    shared, context, answer = w.shared_prompt_tokens, w.context_tokens[0], w.answer_tokens
    script = w.script(context, tokenizer)
    for _, turn in turns(script):
        expected = shared + context + 24 + (turn.round - 1) * (answer + 24)
        assert turn.prompt_tokens == expected == tokenizer.count(turn.messages)
    for turn in script.priming:
        assert turn.prompt_tokens == tokenizer.count(turn.messages)


def test_everything_follows_from_the_seed() -> None:
    """Two scripts of one seed are equal to the byte, one of another seed shares no text with them."""
    first, again = (workload().script(200, Words()) for _ in range(2))
    other = workload(seed=1).script(200, Words())
    assert first == again
    assert first.conversations[0].turns[0].messages[0].text != other.conversations[0].turns[0].messages[0].text


def common(a: str, b: str) -> int:
    """Return the number of words with which both begin."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a.split(), b.split(), strict=False)))


def test_users_share_what_all_share_and_no_more() -> None:
    """Two users' prompts agree up to the end of the shared text, save for a word or two by chance."""
    script = workload().script(200, Words())
    openings = {user: turn.messages[0].text for user, turn in turns(script)}
    shared_words = 60 - Words().count([])  # the template's tokens count as shared
    for a, b in itertools.combinations(openings.values(), 2):
        assert shared_words <= common(a, b) + 10
        assert common(a, b) <= shared_words + 4


def test_runs_on_one_boot_share_no_users_text() -> None:
    """With other user numbers, contexts, questions and answers are others; one length's shared prompt is the same."""
    one, two = (workload().script(200, Words(), first_user=n) for n in (0, 100_000))
    a, b = (s.conversations[0].turns[0].messages[0].text for s in (one, two))
    assert 40 <= common(a, b) <= 60
    assert {u for u, _ in turns(one)}.isdisjoint(u for u, _ in turns(two))


def pieces(script: Script, length: int) -> set[tuple[str, ...]]:
    """Return every sequence of `length` words that a script sends, warm-up and priming included."""
    sent = (*script.warm_up, *script.priming, *(turn for _, turn in turns(script)))
    words = [m.text.split()[1:] for turn in sent for m in turn.messages]  # the first word is the opener
    return {tuple(each[i : i + length]) for each in words for i in range(len(each) - length + 1)}


def test_context_lengths_share_no_text() -> None:
    """Runs of two lengths on one boot have nothing in common, shared prompt and equal user numbers included."""
    w = workload(context_tokens=(200, 400))
    one, two = (pieces(w.script(length, Words()), 6) for length in w.context_tokens)
    assert len(one) > 1000
    assert one.isdisjoint(two)


def test_no_text_comes_again_within_a_prompt() -> None:
    """No sequence of six words is twice in a prompt, even a long one."""
    script = workload(context_tokens=(5000,)).script(5000, Words())
    _, longest = max(turns(script), key=lambda each: each[1].prompt_tokens or 0)
    words = [w for m in longest.messages for w in m.text.split()]
    found = [tuple(words[i : i + 6]) for i in range(len(words) - 5)]
    assert len(found) > 5000
    assert len(set(found)) == len(found)


def test_a_prompt_begins_with_the_one_before_it() -> None:
    """Each round's prompt is the last one's, an answer and a new question: what a prefix cache can use."""
    for conversation in workload().script(200, Words()).conversations:
        for a, b in itertools.pairwise(conversation.turns):
            assert b.messages[: len(a.messages)] == a.messages
            assert [m.role for m in b.messages[len(a.messages) :]] == ["assistant", "user"]


def test_users_who_are_there_already_have_their_history() -> None:
    """From the first moment prompts are of all rounds, whole, and the caches were primed with what came before them."""
    script = workload().script(200, Words())
    start = sorted((t.at_s, t.round, len(t.messages)) for _, t in turns(script))[:3]
    assert [round_ for _, round_, _ in start] == [1, 2, 3]
    assert [count for _, _, count in start] == [1, 3, 5]
    primed = {t.messages for t in script.priming}
    for _, turn in turns(script):
        if turn.at_s < 1.5 and turn.round > 1:
            assert turn.messages[:-2] in primed


def test_texts_are_held_once() -> None:
    """The shared prompt and each context are one object however many prompts have them: a long run fits in memory."""
    script = workload(duration_s=100).script(200, Words())
    shared = {id(t.messages[0].parts[1]) for _, t in turns(script)}
    contexts = {id(t.messages[0].parts[2]) for _, t in turns(script)}
    assert len(shared) == 1
    assert len(contexts) == len(script.conversations)


class Odd(Words):
    """A tokenizer that makes one token of two words now and then."""

    def count(self, messages: Sequence[Message]) -> int:
        """Count words, less some."""
        return super().count(messages) - sum(len(m.text.split()) // 50 for m in messages)


def test_a_tokenizer_that_joins_words_is_refused() -> None:
    """Where lengths do not come out exactly the run does not start, and the error names the way out."""
    with pytest.raises(RunError, match="compat"):
        workload().script(200, Odd())


@pytest.mark.parametrize(
    ("more", "message"),
    [({"question_tokens": 9}, "question_tokens"), ({"shared_prompt_tokens": 2, "context_tokens": (5,)}, "template")],
    ids=["question", "context"],
)
def test_what_is_shorter_than_the_template_is_refused(more: dict[str, object], message: str) -> None:
    """A question or context that the template alone exceeds is an error that says by how much."""
    w = workload(**more)
    with pytest.raises(RunError, match=message):
        w.script(w.context_tokens[0], Words())


def test_calibration_finds_what_the_template_adds() -> None:
    """The overhead of a first message and of each round more is measured, opener words included."""
    found = texts(Words(per_chat=5, per_message=4), seed=0)
    assert isinstance(found, Texts)
    assert (found.first_overhead, found.next_overhead) == (5 + 4 + 1, 2 * (4 + 1))


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 20).map(lambda pairs: 2 * pairs),
    st.integers(1, 6),
    st.integers(0, 90),
    st.sampled_from([0.5, 2.0, 7.0]),
)
def test_yardsticks_are_as_long_as_a_first_prompt_and_share_nothing(
    count: int, users: int, shared: int, qps: float
) -> None:
    """They come in pairs midway between two users' requests, with texts of their own, and change nothing else."""
    w = workload(users=users, shared_prompt_tokens=shared, qps=qps, yardsticks=count)
    without = workload(users=users, shared_prompt_tokens=shared, qps=qps).script(200, Words())
    script = w.script(200, Words(), first_user=0)
    own = [c for c in script.conversations if c.user < 0]
    assert [c for c in script.conversations if c.user >= 0] == list(without.conversations)
    assert (script.priming, script.warm_up) == (without.priming, without.warm_up)
    assert len(own) == count == len({c.user for c in own})
    for conversation in own:
        (turn,) = conversation.turns
        assert turn.prompt_tokens == shared + 200 + 24 == Words().count(turn.messages)
        assert (turn.at_s * qps) % 1 == pytest.approx(0.5)
        assert 0 < turn.at_s < w.duration_s + 0.5 / qps
    assert [c.turns[0].at_s for c in own[::2]] == [c.turns[0].at_s for c in own[1::2]]
    sent = [t.messages[0].text for _, t in turns(script)]
    for conversation in own:
        text = conversation.turns[0].messages[0].text
        assert sum(common(text, other) > 3 for other in sent) == 1  # itself


def test_yardsticks_are_exact_and_change_no_other_workload() -> None:
    """Without them a workload sends what it sent before there were any; mode compat and odd numbers are refused."""
    assert "yardsticks" not in workload().sent(200)
    assert workload(yardsticks=4).sent(200)["yardsticks"] == 4
    for wrong in ({"yardsticks": 3}, {"yardsticks": -2}, {"yardsticks": 4, "mode": "compat"}):
        with pytest.raises(ValueError, match="yardsticks"):
            workload(**wrong)
    more = (workload(yardsticks=4).stored_tokens(200) or 0) - (workload().stored_tokens(200) or 0)
    assert more == 4 * (60 + 200 + 24 + 10)

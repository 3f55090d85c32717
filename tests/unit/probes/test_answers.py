"""When two answers to one prompt are the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.probes.answers import ProbeAnswer, Token, compare, parse, without_numbers


def answer(*tokens: tuple[str, dict[str, float]]) -> ProbeAnswer:
    """Return an answer of tokens, each chosen among some."""
    return ProbeAnswer(100, 0, tuple(Token(name, best[name], best) for name, best in tokens))


def test_equal_within_the_tolerance() -> None:
    """Log-probabilities may differ by less than the tolerance; the largest difference is told."""
    a, b = answer(("x", {"x": -1.0, "y": -3.0})), answer(("x", {"x": -1.004, "y": -3.006}))
    difference = compare(a, b, tolerance=0.01)
    assert difference.fault == ""
    assert difference.largest == pytest.approx(0.006)


def test_a_log_probability_that_moved() -> None:
    """The same tokens with another probability are another answer, also where only the runner-up moved."""
    difference = compare(answer(("x", {"x": -1.0, "y": -3.0})), answer(("x", {"x": -1.0, "y": -2.0})), tolerance=0.01)
    assert difference.fault == "log-probabilities of token 1 differ by 1"


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_answer(broken: float) -> None:
    """What is no number is a fault of its own: a comparison with it is always false."""
    right = answer(("x", {"x": -1.0, "y": -3.0}))
    for found in (answer(("x", {"x": broken, "y": -3.0})), answer(("x", {"x": -1.0, "y": broken}))):
        assert compare(right, found, tolerance=0.01).fault == "log-probabilities of token 1 are no numbers"
    assert "no numbers" in compare(right, without_numbers(100, 90), tolerance=0.01).fault


def test_another_token() -> None:
    """A token that the reference did not have among its best is another answer."""
    difference = compare(answer(("x", {"x": -1.0})), answer(("z", {"z": -1.0})), tolerance=0.01)
    assert difference.fault == "token 1 is z and not x"


def test_a_tie_is_no_difference() -> None:
    """Where the two best were within the tolerance of each other either is right, and the rest is not compared."""
    a = answer(("x", {"x": -1.0, "y": -1.004}), ("p", {"p": -0.1}))
    b = answer(("y", {"x": -1.003, "y": -1.001}), ("q", {"q": -9.0}))
    assert compare(a, b, tolerance=0.01).fault == ""
    assert compare(a, b, tolerance=0.0035).fault == "token 1 is y and not x"


def test_a_shorter_answer() -> None:
    """An answer with fewer tokens is another one."""
    assert compare(answer(("x", {"x": -1.0})), answer(), tolerance=1.0).fault == "0 tokens and not 1"


logprobs = st.dictionaries(st.sampled_from("abcde"), st.floats(-20, 0), min_size=1)


@given(st.lists(logprobs, max_size=4), st.floats(1e-6, 1))
def test_an_answer_equals_itself(bests: list[dict[str, float]], tolerance: float) -> None:
    """Whatever the answer, it is the same as itself, with no difference at all."""
    one = answer(*((max(best, key=best.__getitem__), best) for best in bests))
    assert compare(one, one, tolerance=tolerance).largest == 0.0
    assert compare(one, one, tolerance=tolerance).fault == ""


def completion(details: dict[str, int] | None) -> dict[str, Any]:
    """Return a chat completion as vLLM answers it."""
    token = {"token": "token_id:7", "logprob": -0.5, "top_logprobs": [{"token": "token_id:7", "logprob": -0.5}]}
    usage = {"prompt_tokens": 9, "prompt_tokens_details": details}
    return {"choices": [{"logprobs": {"content": [token]}}], "usage": usage}


@pytest.mark.parametrize(("details", "cached"), [(None, 0), ({"cached_tokens": 8}, 8)])
def test_reading_vllms_answer(details: dict[str, int] | None, cached: int) -> None:
    """Where nothing was cached vLLM leaves the details out."""
    parsed = parse(completion(details))
    assert (parsed.prompt_tokens, parsed.cached_tokens) == (9, cached)
    assert parsed.tokens == (Token("token_id:7", -0.5, {"token_id:7": -0.5}),)

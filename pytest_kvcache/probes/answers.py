"""Answers to a probe's prompt, and the comparison of two answers to one prompt (pure)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Token:
    """One token of a greedy answer.

    Args:
        name: Number of the token (`token_id:17`), since several tokens may have one text.
        logprob: Natural logarithm of the token's probability.
        best: Natural logarithms of the probabilities of the most likely tokens, this one among them, by name.
    """

    name: str
    logprob: float
    best: Mapping[str, float]


@dataclass(frozen=True)
class ProbeAnswer:
    """How a server answered a prompt.

    Args:
        prompt_tokens: Length of the prompt.
        cached_tokens: Prompt tokens that the server says it did not compute for this request.
        tokens: Tokens of the answer.
    """

    prompt_tokens: int
    cached_tokens: int
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class LogprobDifference:
    """How two answers to one prompt differ.

    Args:
        largest: Largest difference of two log-probabilities of the same token in the same place.
        fault: Difference that is more than is allowed, "" where there is none.
    """

    largest: float
    fault: str = ""


def parse(body: Mapping[str, Any]) -> ProbeAnswer:
    """Read a chat completion with log-probabilities, as vLLM answers it.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError: The body is no such completion.
    """
    usage = body["usage"]
    # vLLM leaves the details out where nothing was cached.
    details = usage.get("prompt_tokens_details") or {}
    tokens = body["choices"][0]["logprobs"]["content"]
    return ProbeAnswer(
        prompt_tokens=int(usage["prompt_tokens"]),
        cached_tokens=int(details.get("cached_tokens") or 0),
        tokens=tuple(
            Token(t["token"], float(t["logprob"]), {b["token"]: float(b["logprob"]) for b in t["top_logprobs"]})
            for t in tokens
        ),
    )


def without_numbers(prompt_tokens: int, cached_tokens: int) -> ProbeAnswer:
    """Return the answer of a server that could not write its log-probabilities, because they were not numbers.

    Args:
        prompt_tokens: Length of the prompt.
        cached_tokens: Prompt tokens that were not computed for this request.
    """
    return ProbeAnswer(prompt_tokens, cached_tokens, (Token("?", math.nan, {}),))


def compare(reference: ProbeAnswer, answer: ProbeAnswer, *, tolerance: float) -> LogprobDifference:
    """Compare `answer` with `reference`.

    Where another token was chosen, and the reference has both tokens within the tolerance of each other, either is
    right: the tokens after it follow another text and are not compared.

    Args:
        reference: Answer whose KV was computed.
        answer: Later answer to the same prompt.
        tolerance: Largest allowed difference of two log-probabilities (natural logarithms).
    """
    largest = 0.0
    for place, found in enumerate(answer.tokens, 1):
        if not all(map(math.isfinite, (found.logprob, *found.best.values()))):
            return LogprobDifference(largest, f"log-probabilities of token {place} are no numbers")
    if len(reference.tokens) != len(answer.tokens):
        return LogprobDifference(largest, f"{len(answer.tokens)} tokens and not {len(reference.tokens)}")
    for place, (known, found) in enumerate(zip(reference.tokens, answer.tokens, strict=True), 1):
        largest = max(
            largest, *(abs(known.best[n] - found.best[n]) for n in known.best.keys() & found.best.keys()), 0.0
        )
        other = known.best.get(found.name)
        if known.name != found.name and (other is None or known.logprob - other > tolerance):
            return LogprobDifference(largest, f"token {place} is {found.name} and not {known.name}")
        if largest > tolerance:
            return LogprobDifference(largest, f"log-probabilities of token {place} differ by {largest:.3g}")
        if known.name != found.name:
            break
    return LogprobDifference(largest)

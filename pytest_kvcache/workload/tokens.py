"""The served tokenizer: exact counts, and words that are one token each, so that texts have exact lengths.

vLLM answers `/tokenize` and `/detokenize` (vLLM's docs, "Tokenizer API"), so that this side needs no tokenizer of its
own, which might differ from the served one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import requests

from pytest_kvcache.endpoint.address import below
from pytest_kvcache.endpoint.certificates import verification
from pytest_kvcache.errors import RunError
from pytest_kvcache.redaction import redacted
from pytest_kvcache.workload.script import LateText, Message

#: Each message begins with this text, since a word at the start of a message is cut into other tokens than one inside.
OPENER = "Note:"
_WORD = re.compile(r"^ [a-z]{3,12}$")
#: Words are looked for among the token ids from `_FIRST_ID` to the first of `_LAST_IDS` that the server accepts.
_FIRST_ID = 300
_LAST_IDS = (12000, 6000, 4000, 2000, 1000)
_FEWEST_WORDS = 50
_TIMEOUT_S = 60
_COMPAT = 'use mode = "compat" (`--mode compat`)'


class Tokenizer(Protocol):
    """What a workload may ask of the served tokenizer."""

    @property
    def max_model_len(self) -> int | None:
        """The longest prompt with its answer that the server takes (tokens), None where it does not say."""

    def count(self, messages: Sequence[Message]) -> int:
        """Return the length of a chat prompt as the server will count it, template included (tokens)."""

    def words(self) -> tuple[str, ...]:
        """Return words that are one token each after a space, whatever stands around them."""


class ServedTokenizer:
    """The tokenizer of a vLLM server.

    Args:
        url: Address of the server, without /v1.
        model: Name of the model that requests carry.
        authorization: Value of the header of that name, "" for none.
        compat_helps: Whether the workload has a mode that needs no tokenizer.
    """

    def __init__(self, url: str, model: str, *, authorization: str = "", compat_helps: bool = False) -> None:
        self._url, self._model = url, model
        self._todo = "name a vLLM server with --tokenizer-url" + (f", or {_COMPAT}" if compat_helps else "")
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = verification(url)
        if authorization:
            self._session.headers["Authorization"] = authorization
        self.max_model_len: int | None = None

    def count(self, messages: Sequence[Message]) -> int:
        """Return the length of a chat prompt (tokens).

        Raises:
            RunError: The server has no tokenizer API, or refuses the request.
        """
        data = {"messages": [{"role": m.role, "content": m.text} for m in messages], "add_generation_prompt": True}
        count: int = self._tokenize(data)["count"]
        return count

    def words(self) -> tuple[str, ...]:
        """Return the words of one token each, sorted.

        Raises:
            RunError: As for `count`, or the vocabulary has too few such words.
        """
        newline = self._newline()
        texts: set[str] = set()
        for last in _LAST_IDS:
            ids = [part for token in range(_FIRST_ID, last) for part in (token, newline)]
            answer = self._ask("detokenize", {"tokens": ids}, refusal_ok=last != _LAST_IDS[-1])
            if answer is not None:
                if not isinstance(answer.get("prompt"), str):
                    raise self._no_api("detokenize")
                texts = set(answer["prompt"].split("\n"))
                break
        found = self._single(sorted(text[1:] for text in texts if _WORD.match(text)))
        if len(found) < _FEWEST_WORDS:
            raise RunError(
                f"exact lengths need {_FEWEST_WORDS} words of one token, the tokenizer has {len(found)} early on",
                where=below(self._url, "detokenize"),
                todo=self._todo,
            )
        return tuple(found)

    def _newline(self) -> int:
        """Return the last token of a line end."""
        tokens = self._tokenize({"prompt": "\n", "add_special_tokens": False}).get("tokens")
        if not isinstance(tokens, list) or not tokens or not isinstance(tokens[-1], int):
            raise self._no_api("tokenize")
        return tokens[-1]

    def _single(self, words: list[str]) -> list[str]:
        """Return those of `words` that are one token each in a text of such words."""
        if not words:
            return []
        alone = self._tokenize({"prompt": OPENER, "add_special_tokens": False})["count"]
        together = self._tokenize({"prompt": " ".join([OPENER, *words]), "add_special_tokens": False})["count"]
        if together == alone + len(words):
            return words
        if len(words) == 1:
            return []
        half = len(words) // 2
        return [*self._single(words[:half]), *self._single(words[half:])]

    def _tokenize(self, data: dict[str, Any]) -> dict[str, Any]:
        answer = self._ask("tokenize", data)
        if answer is None:
            raise AssertionError("a refusal is an error here")
        if type(answer.get("count")) is not int:
            raise self._no_api("tokenize")
        longest = answer.get("max_model_len")
        self.max_model_len = longest if type(longest) is int else None
        return answer

    def _no_api(self, what: str) -> RunError:
        return RunError("is not vLLM's tokenizer API", where=below(self._url, what), todo=self._todo)

    def _ask(self, what: str, data: dict[str, Any], *, refusal_ok: bool = False) -> dict[str, Any] | None:
        url = below(self._url, what)
        todo = self._todo
        try:
            response = self._session.post(url, json={"model": self._model, **data}, timeout=_TIMEOUT_S)
            if response.status_code != 200:
                if refusal_ok and response.status_code in {400, 500}:
                    return None
                raise RunError(f"HTTP {response.status_code}: {redacted(response.text)[:200]}", where=url, todo=todo)
            answer = response.json()
        # A redirection to an impossible name and a number of thousands of digits are ValueErrors.
        except (requests.RequestException, ValueError, RecursionError) as error:
            cause = redacted(str(error))
            raise RunError(f"exact prompt lengths need vLLM's tokenizer API: {cause}", where=url, todo=todo) from None
        if not isinstance(answer, dict):
            raise self._no_api(what)
        return answer


@dataclass(frozen=True)
class Texts:
    """Texts of exact length that follow from a seed.

    Args:
        vocabulary: Words of one token each.
        seed: Equal seeds give equal texts.
        first_overhead: Tokens that a chat of one message has besides its words, from the chat template and the opener.
        next_overhead: Tokens that an answer and the next question add besides their words.
    """

    vocabulary: tuple[str, ...]
    seed: int
    first_overhead: int
    next_overhead: int

    def words(self, count: int, *name: object) -> str:
        """Return `count` words in random order, always the same for the same name.

        The vocabulary has hundreds of words, so no sequence of a few words comes again within a prompt.
        """
        source = random.Random("/".join(map(str, (self.seed, *name))))  # noqa: S311 - reproducible, not secret
        return " ".join(source.choices(self.vocabulary, k=count))

    def late(self, count: int, *name: object) -> LateText:
        """Return what makes the text of `words` when it is needed."""
        return LateText(self.words, count, name)


def texts(tokenizer: Tokenizer, *, seed: int, compat_helps: bool = False) -> Texts:
    """Measure how many tokens the chat template adds, and check that lengths then come out exactly.

    Raises:
        RunError: The server counts other lengths than expected.
    """
    vocabulary = tokenizer.words()
    draft = Texts(vocabulary, seed, 0, 0)

    def chat(*lengths: int, name: str) -> list[Message]:
        roles = ("user", "assistant")
        return [message(roles[i % 2], draft.words(length, "calibration", name, i)) for i, length in enumerate(lengths)]

    first = tokenizer.count(chat(20, name="one")) - 20
    following = tokenizer.count(chat(20, 30, 40, name="three")) - first - 90
    for lengths in ((len(vocabulary) * 2,), (33, 7, 12, 5, 9), (300, 200, 100, 50, 25, 12, 6)):
        expected = first + sum(lengths) + following * (len(lengths) // 2)
        found = tokenizer.count(chat(*lengths, name="check"))
        if found != expected:
            raise RunError(
                f"{len(lengths)} messages have {found} tokens, not {expected}: lengths do not come out exactly",
                where="the model's tokenizer and chat template",
                todo=_COMPAT if compat_helps else "serve the model with another chat template, or another model",
            )
    return Texts(vocabulary, seed, first, following)


def message(role: str, *parts: str | LateText) -> Message:
    """Return a message of texts from `Texts`, with the opener before them."""
    return Message(role, (OPENER, *(part for part in parts if part)))

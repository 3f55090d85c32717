"""A salt in every prompt, in place of a cold start: caches of a deployment hold nothing of prompts that nobody sent.

The words of the served vocabulary change places, by an order that follows from the salt. So every text that a workload
makes of them has the same length as ever and shares no word order with a text of another salt: from its first words on,
no block of a prompt is one that an earlier pass has left in a cache. Texts that are not made of these words, as those
of a file, get the salt as their first words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.script import Conversation, Message, Script, Turn
from pytest_kvcache.workload.tokens import Tokenizer


class SaltedTokenizer:
    """A tokenizer whose words stand in an order of their own for each salt.

    Args:
        tokenizer: The served one.
        salt: Text that the order follows from.
    """

    def __init__(self, tokenizer: Tokenizer, salt: str) -> None:
        self._tokenizer, self._salt = tokenizer, salt
        #: Whether words were asked for, so that texts are made of them.
        self.gave_words = False

    @property
    def max_model_len(self) -> int | None:
        """The longest prompt with its answer that the server takes (tokens), None where it does not say."""
        return self._tokenizer.max_model_len

    def count(self, messages: Sequence[Message]) -> int:
        """Return the length of a chat prompt (tokens)."""
        return self._tokenizer.count(messages)

    def words(self) -> tuple[str, ...]:
        """Return the words of one token each, in the order of the salt."""
        found = sorted(self._tokenizer.words())
        random.Random(self._salt).shuffle(found)  # noqa: S311 - reproducible, not secret
        self.gave_words = True
        return tuple(found)


def prefixed(script: Script, salt: str) -> Script:
    """Return a script whose every prompt begins with the salt; the exact lengths of its prompts are then not known."""

    def turn(each: Turn, *, first: bool) -> Turn:
        if not first or not each.messages:
            return replace(each, prompt_tokens=None)
        head, *rest = each.messages
        return replace(each, messages=(replace(head, parts=(salt, *head.parts)), *rest), prompt_tokens=None)

    def conversation(each: Conversation) -> Conversation:
        # Where answers return, later turns go on from the first message, which has the salt.
        turns = tuple(turn(t, first=i == 0 or not each.answers_return) for i, t in enumerate(each.turns))
        return replace(each, turns=turns)

    return replace(
        script,
        conversations=tuple(map(conversation, script.conversations)),
        priming=tuple(turn(each, first=True) for each in script.priming),
        warm_up=tuple(turn(each, first=True) for each in script.warm_up),
    )


def salted_script(
    workload: Workload, context_tokens: int, tokenizer: Tokenizer | None, *, salt: str, first_user: int
) -> Script:
    """Return the script of a workload, with the salt in every prompt.

    Args:
        workload: What makes the script.
        context_tokens: One of its lengths.
        tokenizer: The served tokenizer, None for a workload that needs none.
        salt: The salt, "" for none.
        first_user: Users are numbered from the next one on.

    Raises:
        RunError: The workload does not fit the model's tokenizer or length.
    """
    if not salt:
        return workload.script(context_tokens, tokenizer, first_user=first_user)
    words = None if tokenizer is None else SaltedTokenizer(tokenizer, salt)
    script = workload.script(context_tokens, words, first_user=first_user)
    return script if words is not None and words.gave_words else prefixed(script, salt)

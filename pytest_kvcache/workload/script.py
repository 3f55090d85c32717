"""What a workload sends: conversations of turns at absolute times. Every kind of workload makes such a script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class LateText:
    """A text that follows from its name and is made when it is needed, so that a script of gigabytes stays small.

    Args:
        source: Returns the text of so many words with that name, always the same.
        words: Length of the text (words).
        name: The name.
    """

    source: Callable[..., str]
    words: int
    name: tuple[object, ...]

    def __str__(self) -> str:
        return self.source(self.words, *self.name)


@dataclass(frozen=True)
class Message:
    """One message of a chat.

    Args:
        role: `user` or `assistant`.
        parts: The text in parts, to be joined by spaces. A text that several prompts share is one object, so that a
            run with gigabytes of prompts holds and encodes it once. A `LateText` is made just before it is sent.
    """

    role: str
    parts: tuple[str | LateText, ...]

    @property
    def text(self) -> str:
        """The whole text."""
        return " ".join(map(str, self.parts))


@dataclass(frozen=True)
class Turn:
    """One request that is to be sent.

    Args:
        round: Number of the question in its user's session, from 1.
        at_s: When the request is due, after the start of the run.
        messages: The prompt: all of it, or what is new since the last answer (see `Conversation.answers_return`).
        answer_tokens: Length of the answer that is asked for.
        prompt_tokens: Length of the whole prompt in tokens of the served tokenizer, where the workload knows it.
        after_s: How long after the end of the answer before it the request is due, or for a first turn after its
            conversation may begin; `at_s` then says nothing. None where `at_s` holds.
    """

    round: int
    at_s: float
    messages: tuple[Message, ...]
    answer_tokens: int
    prompt_tokens: int | None = None
    after_s: float | None = None


@dataclass(frozen=True)
class Conversation:
    """The turns of one user: each is sent when it is due, but not before the answer to the previous turn is there.

    Args:
        user: Number of the user.
        turns: The turns in order; `at_s` rises where it holds.
        answers_return: Whether the prompt of a turn is all that was said before, real answers included, followed by the
            turn's messages. Otherwise these messages are the whole prompt, and the run can be repeated to the byte.
    """

    user: int
    turns: tuple[Turn, ...]
    answers_return: bool = False


@dataclass(frozen=True)
class Script:
    """A whole run.

    Args:
        conversations: The conversations in the order in which they begin.
        warm_up: Requests that are sent all at once before the clock starts; their answers are thrown away.
        priming: Requests that are sent one after the other after the warm-up, so that the caches hold what they would
            hold if the run had begun long ago.
        primed_users: Number of the user of each request of `priming`; empty where these are no user's.
        user_header: Whether each request names its user in `x-user-id`.
        left_out: What of the workload's file is not sent, for people; "" for nothing.
        concurrency: So many conversations are under way at a time, in order; None where each begins at its time.
    """

    conversations: tuple[Conversation, ...]
    warm_up: tuple[Turn, ...] = ()
    priming: tuple[Turn, ...] = ()
    primed_users: tuple[int, ...] = ()
    user_header: bool = False
    left_out: str = ""
    concurrency: int | None = None

    @property
    def answer_tokens(self) -> int:
        """Length of all answers together (tokens)."""
        return sum(turn.answer_tokens for user in self.conversations for turn in user.turns)

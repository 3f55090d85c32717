"""The multi-round QA workload: users who come back with their whole history.

In mode `exact` everything is known before the clock starts. Each prompt has an exact length in tokens of the served
tokenizer. The users are at all rounds of their sessions from the start, and have the history of the rounds before. The
history carries prepared answers in place of the answers that were given, so that two runs send the same bytes at the
same times. Mode `compat` sends what LMCache's script sends (`reference.py`).

Yardsticks are requests beside these users that no cache can have: each asks once, with a text of its own as long as a
user's first prompt. Their TTFT is that of the machine and of the engine's arithmetic in the same minutes, so that what
the caches bring can be told apart from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from pytest_kvcache.errors import RunError
from pytest_kvcache.workload import reference
from pytest_kvcache.workload.base import SEED
from pytest_kvcache.workload.schedule import Due
from pytest_kvcache.workload.script import Conversation, Message, Script, Turn
from pytest_kvcache.workload.steady import SteadyWorkload
from pytest_kvcache.workload.tokens import Texts, Tokenizer, message, texts

#: Length of a warm-up prompt (words).
_WARM_UP = 100


class MultiRoundQa(SteadyWorkload):
    """Parameters of the multi-round QA workload.

    The descriptions name in brackets the option of LMCache's `multi-round-qa.py` that has the same meaning.
    """

    FLAGS: ClassVar[Mapping[str, str]] = {
        **SteadyWorkload.FLAGS,
        "seed": "seed",
        "shared_system_prompt": "shared_prompt_tokens",
        "answer_len": "answer_tokens",
        "mode": "mode",
    }
    HAS_COMPAT: ClassVar[bool] = True

    kind: Literal["multi-round-qa"] = "multi-round-qa"
    mode: Literal["exact", "compat"] = Field(
        default="exact", description="prepared prompts of exact length, or what LMCache's script sends"
    )
    seed: int = Field(default=0, description=f"{SEED} (exact only)")
    shared_prompt_tokens: int = Field(ge=0, description="prompt that all users share [--shared-system-prompt]")
    question_tokens: PositiveInt = Field(default=32, description="what a round adds besides its answer (exact only)")
    answer_tokens: PositiveInt = Field(description="length of an answer [--answer-len]")

    yardsticks: int = Field(
        default=0,
        ge=0,
        lt=10_000,
        multiple_of=2,
        description="requests that no cache can have, two at a time and spread evenly over the run, for the metrics "
        "compute and tier (exact only)",
    )

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> Self:
        if self.mode == "compat":
            for key in ("yardsticks", "question_tokens", "seed"):
                usual = type(self).model_fields[key].default
                if getattr(self, key) != usual:
                    raise ValueError(
                        f'{key} says nothing in mode = "compat", which sends what the original sends: leave it out, or '
                        f"at {usual}"
                    )
        return self

    @property
    def unused_flags(self) -> Mapping[str, str]:
        """In mode `compat`, those that only prompts of exact length depend on."""
        if self.mode == "exact":
            return {}
        return {
            "seed": "--mode compat: the original's texts do not depend on one",
            "tokenizer_url": "--mode compat: nothing is counted",
        }

    @property
    def needs_tokenizer(self) -> bool:
        """Whether `script` counts tokens, as it does in mode `exact`."""
        return self.mode == "exact"

    @property
    def repeats_exactly(self) -> bool:
        """Whether prompts are exact, and with them every user's turn."""
        return self.mode == "exact"

    @property
    def yardstick_count(self) -> int:
        """Number of requests that no cache can have."""
        return self.yardsticks

    @property
    def decodes(self) -> bool:
        """Whether answers have more than one token."""
        return self.answer_tokens > 1

    def longest_tokens(self) -> int | None:
        """Return the length of the longest prompt with its answer (tokens), None in mode `compat`."""
        if self.mode == "compat":
            return None
        return self.prompt_tokens(max(self.context_tokens), self.rounds) + self.answer_tokens

    def stored_tokens(self, context_tokens: int) -> int | None:
        """Return the tokens of the shared prompt, and of each user's longest own history with its last answer."""
        last: dict[int, int] = {}
        for due in (*self.due(before=True), *self.due()):
            last[due.user] = max(due.round, last.get(due.user, 0))
        own = (self.prompt_tokens(context_tokens, n) - self.shared_prompt_tokens for n in last.values())
        cold = self.yardsticks * (self.prompt_tokens(context_tokens, 1) + self.answer_tokens)
        return self.shared_prompt_tokens + sum(own) + len(last) * self.answer_tokens + cold

    def sent(self, context_tokens: int) -> dict[str, Any]:
        """Return all that decides the requests of a run; without yardsticks it is as if there were no such key."""
        keys = super().sent(context_tokens)
        if not self.yardsticks:
            del keys["yardsticks"]
        return keys

    def script(self, context_tokens: int, tokenizer: Tokenizer | None, *, first_user: int = 0) -> Script:
        """Return the run at one context length."""
        if self.mode == "compat" or tokenizer is None:
            return self._as_reference(context_tokens, first_user)
        source = texts(tokenizer, seed=self.seed, compat_helps=True)
        longest = self.prompt_tokens(context_tokens, self.rounds) + self.answer_tokens
        if tokenizer.max_model_len is not None and longest > tokenizer.max_model_len:
            raise RunError(
                f"the longest prompt with its answer has {longest} tokens, the model takes {tokenizer.max_model_len}",
                where="workload",
                todo="lower context_tokens, shared_prompt_tokens, answer_tokens or rounds",
            )
        return _Exact(self, context_tokens, source).script(first_user)

    def prompt_tokens(self, context_tokens: int, question: int) -> int:
        """Return the length of the prompt (tokens) with a user's question number `question`, from 1 (exact only)."""
        first = self.shared_prompt_tokens + context_tokens + self.question_tokens
        return first + (question - 1) * (self.answer_tokens + self.question_tokens)

    def _as_reference(self, context_tokens: int, first_user: int) -> Script:
        sessions = reference.schedule(
            users=self.users, rounds=self.rounds, qps=self.qps, duration_s=self.duration_s, first_user=first_user
        )
        conversations = tuple(
            Conversation(session.user, tuple(self._reference_turns(session, context_tokens)), answers_return=True)
            for session in sessions
        )
        warm_up = tuple(
            Turn(i, 0.0, (Message("user", (reference.warm_up(first_user + i),)),), reference.WARM_UP_ANSWER_TOKENS)
            for i in range(self.warmup_requests)
        )
        return Script(conversations, warm_up, user_header=True)

    def _reference_turns(self, session: reference.Session, context_tokens: int) -> Iterator[Turn]:
        *before, opening = reference.opening(
            session.user, shared_tokens=self.shared_prompt_tokens, context_tokens=context_tokens
        )
        for asked in session.turns:
            # The reference joins opening and question without a space between them.
            parts = (*before, opening + reference.question(asked.question))
            yield Turn(asked.question, asked.at_s, (Message("user", parts),), self.answer_tokens)
            before, opening = [], ""


class _Exact:
    """Makes the prompts of one context length."""

    def __init__(self, workload: MultiRoundQa, context_tokens: int, source: Texts) -> None:
        self._workload, self._context_tokens, self._texts = workload, context_tokens, source
        self._shared_words, self._context_words = workload.shared_prompt_tokens, context_tokens
        # The chat template's tokens count into the shared prompt, or into the context where that prompt is shorter.
        if self._shared_words >= source.first_overhead:
            self._shared_words -= source.first_overhead
        else:
            self._context_words -= source.first_overhead
        self._question_words = workload.question_tokens - source.next_overhead
        if self._context_words < 1:
            raise RunError(
                f"the chat template alone is {source.first_overhead} tokens", where="workload.context_tokens"
            )
        if self._question_words < 1:
            raise RunError(
                f"the chat template adds {source.next_overhead} tokens a round",
                where="workload.question_tokens",
                todo=f"set it to more than {source.next_overhead}",
            )
        self._shared = self._say(self._shared_words, "shared")
        self._messages: dict[tuple[int, int], tuple[Message, ...]] = {}

    def script(self, first_user: int) -> Script:
        w = self._workload
        warm_up = tuple(
            Turn(i, 0.0, (message("user", self._say(_WARM_UP, "warm-up", first_user, i)),), w.answer_tokens)
            for i in range(w.warmup_requests)
        )
        script = w.steady_script(self._turn, first_user=first_user, warm_up=warm_up)
        return replace(script, conversations=(*script.conversations, *self._yardsticks(first_user)))

    def _yardsticks(self, first_user: int) -> Iterator[Conversation]:
        # Two at a time: a balancer that takes two servers in turn goes on as if there had been none. In the middle
        # between two users' requests, so that no more of those wait for them than must.
        w = self._workload
        for number in range(1, w.yardsticks + 1):
            user = -(first_user + number)
            context = self._say(self._shared_words + self._context_words, "yardstick", user)
            question = self._say(w.question_tokens, "question", user)
            evenly_s = ((number + 1) // 2 - 0.5) * w.duration_s / (w.yardsticks / 2)
            at_s = (math.floor(evenly_s * w.qps) + 0.5) / w.qps
            length = w.prompt_tokens(self._context_tokens, 1)
            yield Conversation(user, (Turn(1, at_s, (message("user", context, question),), w.answer_tokens, length),))

    def _say(self, count: int, *name: object) -> str:
        """Return a text that only this context length has: a cache that holds another length's run has none of it."""
        return self._texts.words(count, self._context_tokens, *name)

    def _turn(self, due: Due) -> Turn:
        messages = tuple(m for r in range(1, due.round + 1) for m in self._round(due.user, r))
        length = self._workload.prompt_tokens(self._context_tokens, due.round)
        return Turn(due.round, due.at_s, messages, self._workload.answer_tokens, length)

    def _round(self, user: int, number: int) -> tuple[Message, ...]:
        """Return the messages of a round: the answer before question `number`, where there is one, and the question."""
        if (user, number) not in self._messages:
            if number == 1:
                context = self._say(self._context_words, "user", user)
                question = self._say(self._workload.question_tokens, "question", user, number)
                made: tuple[Message, ...] = (message("user", self._shared, context, question),)
            else:
                answer = self._say(self._workload.answer_tokens, "answer", user, number - 1)
                question = self._say(self._question_words, "question", user, number)
                made = (message("assistant", answer), message("user", question))
            self._messages[user, number] = made
        return self._messages[user, number]

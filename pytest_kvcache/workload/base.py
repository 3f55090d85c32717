"""What every kind of workload has in common. A kind is one module: a pydantic model of its keys, with `script`."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from pytest_kvcache.strict import Strict
from pytest_kvcache.workload.script import Message, Script, Turn
from pytest_kvcache.workload.tokens import Tokenizer

#: Streamed chunks a second that one load process stamps well (docs/client.md).
_CHUNKS_A_WORKER = 20_000
#: Length of the answer to a plain warm-up request (tokens).
_WARM_UP_ANSWER = 8
#: Description of the key `seed`, for the kinds that make texts.
SEED = "number that all texts follow from"
#: A run has no more seconds, users or requests.
MOST = 10_000_000


class Workload(Strict):
    """The keys that every kind has, and the methods that it implements or may override.

    A key that says nothing to a kind does not stand here: each kind declares its own, such as `seed` where texts are
    made.

    The descriptions name in brackets the option of LMCache's `multi-round-qa.py` that has the same meaning.
    """

    #: Keys that change how a run is judged or carried out, and not what is sent.
    NOT_COMPARED: ClassVar[frozenset[str]] = frozenset(
        {
            "context_tokens",
            "allowed_failures",
            "send_late_budget_s",
            "residual_budget_s",
            "shared_reads_budget",
            "workers",
            "clock_error_budget_s",
            "clock_drift_budget_ppm",
        }
    )

    #: Version of the requests: raised when the same keys begin to give other requests, which makes older baselines
    #: incomparable.
    GENERATOR: ClassVar[int] = 1

    #: Flags of `pytest-kvcache load` that decide what a run of this kind sends, each with the key that it sets. A kind
    #: lists no flag for a key that its requests do not depend on: `load` refuses all flags of other kinds.
    FLAGS: ClassVar[Mapping[str, str]] = {"warmup_requests": "warmup_requests"}

    #: Whether the kind has a mode "compat", which needs no tokenizer.
    HAS_COMPAT: ClassVar[bool] = False

    kind: str
    context_tokens: tuple[Annotated[PositiveInt, Field(lt=10**9)], ...] = Field(
        min_length=1, description="lengths of the user context, one test each [--user-history-prompt]"
    )
    duration_s: PositiveFloat = Field(le=MOST, description="no request is started later than this [--time]")
    ignore_eos: bool = Field(default=True, description="answers are exactly as long as was asked for")
    warmup_requests: int = Field(default=10, ge=0, lt=100_000, description="requests sent before the clock starts")
    request_timeout_s: PositiveFloat = Field(
        default=300, le=MOST, description="a request that takes longer than this fails"
    )
    token_timeout_s: PositiveFloat = Field(
        default=120, le=MOST, description="a stream that brings nothing for this long fails"
    )
    workers: PositiveInt | None = Field(
        default=None,
        description="load processes, on each load node where there are any; by default what the rate needs",
    )
    send_late_budget_s: PositiveFloat = Field(
        default=0.05, description="a run whose requests left later than this (p99, the client's fault) is invalid"
    )
    residual_budget_s: PositiveFloat = Field(
        default=0.5, description="a run whose client TTFT less the server's own (p99) is more than this is suspect"
    )
    shared_reads_budget: NonNegativeFloat = Field(
        default=0.05,
        le=1,
        description="a run is suspect in which the first token came in one read with later ones, in more than this "
        "share of the answers",
    )
    clock_error_budget_s: PositiveFloat = Field(
        default=0.001,
        description="a load over nodes does not begin where a node's clock is not known this well, and is invalid "
        "where a node's times may be wrong by more at its end",
    )
    clock_drift_budget_ppm: PositiveFloat = Field(
        default=100.0,
        description="a load over nodes is invalid where a node's clock went faster or slower than the coordinator's by "
        "more than this (parts per million)",
    )
    allowed_failures: NonNegativeFloat = Field(
        default=0.0, le=1, description="share of failed requests that a verdict may rest on"
    )

    @field_validator("context_tokens")
    @classmethod
    def _each_stands_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if twice := next((length for length in value if value.count(length) > 1), None):
            raise ValueError(f"{twice} is there twice")
        return value

    @abstractmethod
    def script(self, context_tokens: int, tokenizer: Tokenizer | None, *, first_user: int = 0) -> Script:
        """Return all that a run sends.

        Args:
            context_tokens: Length of the user context, one of the workload's `context_tokens`.
            tokenizer: Tokenizer of the served model; None for a workload whose `needs_tokenizer` is False.
            first_user: Users are numbered from `first_user + 1` on, so that runs on one boot share no user's text.

        Raises:
            RunError: The workload does not fit the model's tokenizer or length.
        """

    @property
    def unused_flags(self) -> Mapping[str, str]:
        """Flags of `load` that this run does not use although its kind has them, each with the flag's name and why."""
        return {}

    @property
    def needs_tokenizer(self) -> bool:
        """Whether `script` counts tokens."""
        return True

    def check(self) -> None:
        """Check that the files which the workload reads are there and sound; called before anything boots.

        Raises:
            ConfigError: A file is missing or unsound; the message names file and line.
        """

    def plain_warm_up(self, first_user: int) -> tuple[Turn, ...]:
        """Return warm-up requests for a kind that has no texts of its own for them.

        Args:
            first_user: As in `script`: no two loads on a boot warm up with the same text.
        """
        words = " ".join(["warm"] * 60)
        return tuple(
            Turn(i, 0.0, (Message("user", (f"{first_user} {i} {words}",)),), _WARM_UP_ANSWER)
            for i in range(self.warmup_requests)
        )

    def longest_tokens(self) -> int | None:
        """Return the length of the longest prompt with its answer (tokens), None where it is not known beforehand."""
        return None

    def stored_tokens(self, context_tokens: int) -> int | None:  # noqa: ARG002 - for the kinds that know it
        """Return about how many different tokens one run leaves in a cache, None where it is not known beforehand."""
        return None

    def requests(self) -> int | None:
        """Return how many requests one run sends at each length, None where it is not known beforehand."""
        return None

    @property
    def repeats_exactly(self) -> bool:
        """Whether every run sends the same prompts, so that caches of one size have the same hits in each boot."""
        return False

    @property
    def yardstick_count(self) -> int:
        """Number of requests that no cache can have, sent beside the users'."""
        return 0

    @property
    def decodes(self) -> bool:
        """Whether answers have more than one token, so that there is a decode throughput."""
        return True

    def round_s(self) -> float | None:
        """Return the time in which every user asks once (s), None for a workload without such rounds."""
        return None

    @cached_property
    def content_digest(self) -> str:
        """A digest of the files that the workload reads, "" where it reads none."""
        return ""

    def sent(self, context_tokens: int) -> dict[str, Any]:
        """Return all that decides the requests of a run, as JSON values.

        Two runs have equal values exactly if their requests are equal.

        Args:
            context_tokens: Length of the user context, one of the workload's `context_tokens`.
        """
        keys = self.model_dump(mode="json", exclude=set(self.NOT_COMPARED))
        keys |= {"context_tokens": context_tokens, "generator": self.GENERATOR}
        return keys | ({"content": self.content_digest} if self.content_digest else {})

    def worker_count(self, script: Script) -> int:
        """Return the number of load processes for `script`."""
        most = script.concurrency or len(script.conversations)
        if self.workers is not None:
            return self.workers if script.concurrency is None else min(self.workers, most)
        wanted = self.wanted_workers(script.answer_tokens)
        return max(1, min(wanted, os.cpu_count() or 1, most, len(script.conversations)))

    def wanted_workers(self, answer_tokens: int) -> int:
        """Return the number of load processes that answers of so many tokens in all want, however many there can be."""
        return max(1, math.ceil(answer_tokens / self.duration_s / _CHUNKS_A_WORKER))

"""Requests from a trace: Mooncake's, and those of other tools that write theirs alike (`trace_rows.py`).

A request is sent as long after the first request as in the trace, divided by `speed`; with `concurrency`, so many
sessions are under way at any time, whatever the trace's times. A later turn of a session waits for the answer before
it. Requests that are longer than the run's context length or than the model takes, or shorter than the chat template,
are left out and told by their share of the prompt tokens.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.strict import UserPath
from pytest_kvcache.workload.base import SEED, Workload
from pytest_kvcache.workload.script import Conversation, Script, Turn
from pytest_kvcache.workload.tokens import Tokenizer, texts
from pytest_kvcache.workload.trace_prompts import Prompts
from pytest_kvcache.workload.trace_rows import BLOCK_TOKENS, FORMATS, FormatName, NumberedRow, TraceFormat, read
from pytest_kvcache.workload.trace_sessions import LeftOut, Sessions, TimedRow

__all__ = ["LeftOut", "MooncakeTrace", "read"]

#: Keys with the values that change nothing: `sent` has the others alone, so that older baselines hold.
_USUAL = {
    "block_tokens": (None, BLOCK_TOKENS),
    "time_unit": ("",),
    "trace_format": ("mooncake",),
    "concurrency": (None,),
}


class MooncakeTrace(Workload):
    """Parameters of a run of a trace; `context_tokens` is the longest prompt that is sent."""

    #: The content of the file is compared (`content_digest`), not its path.
    NOT_COMPARED: ClassVar[frozenset[str]] = Workload.NOT_COMPARED | {"path"}

    FLAGS: ClassVar[Mapping[str, str]] = {
        **Workload.FLAGS,
        "seed": "seed",
        "trace": "path",
        "trace_format": "trace_format",
        "speed": "speed",
        "concurrency": "concurrency",
        "block_tokens": "block_tokens",
        "time_unit": "time_unit",
    }

    kind: Literal["mooncake-trace"] = "mooncake-trace"
    seed: int = Field(default=0, description=SEED)
    path: UserPath = Field(description="the trace file")
    trace_format: FormatName = Field(default="mooncake", description="which tool's rows the trace has")
    speed: PositiveFloat = Field(default=1.0, description="a speed of 2 sends twice as fast as the trace was taken")
    concurrency: PositiveInt | None = Field(
        default=None, le=100_000, description="so many sessions or requests are under way at a time, in place of times"
    )
    block_tokens: PositiveInt | None = Field(
        default=None, lt=10**9, description="tokens that a hash id stands for; by default what the format has"
    )
    time_unit: Literal["", "ms", "s"] = Field(
        default="", description="unit of times: that of the format, or ms where they are whole numbers"
    )

    @model_validator(mode="after")
    def _times_hold_or_do_not(self) -> Self:
        if self.concurrency is not None and self.speed != 1.0:
            raise ValueError("speed says nothing beside concurrency, with which the times of the trace do not hold")
        return self

    @property
    def unused_flags(self) -> Mapping[str, str]:
        """With a concurrency, the speed at which times would pass."""
        if self.concurrency is None:
            return {}
        return {"speed": "--concurrency: the times of the trace do not hold"}

    @property
    def _form(self) -> TraceFormat:
        return FORMATS[self.trace_format]

    @property
    def _unit(self) -> str:
        return self.time_unit or self._form.time_unit

    @property
    def _block_tokens(self) -> int:
        return self.block_tokens or self._form.block_tokens

    def check(self) -> None:
        """Read the whole trace once.

        Raises:
            ConfigError: The trace is unsound (the message names file and line) or has no request that is short enough.
        """
        sessions = self._sessions()
        if not sessions:
            raise ConfigError("has no rows", where=str(self.path))
        if not any(session[0].row.input_length <= min(self.context_tokens) for session in sessions):
            raise ConfigError(
                f"has no request of at most {min(self.context_tokens)} tokens",
                where=str(self.path),
                todo="raise workload.context_tokens",
            )

    def _rows(self) -> Iterator[NumberedRow]:
        for each in read(self.path, self._block_tokens):
            where = f"{self.path}: line {each.number}"
            if each.row.delay_ms is not None and self._unit == "s":
                raise ConfigError(
                    "delay_ms: is in milliseconds, and the times of the trace are in seconds",
                    where=where,
                    todo="call it delay and give it in seconds, or say another workload.time_unit",
                )
            delay = None if each.row.delay_ms is not None else each.row.delay
            for key, value in (("timestamp", each.row.timestamp), ("delay", delay)):
                if not self._unit and value is not None and not value.is_integer():
                    raise ConfigError(
                        f"{key}: {value:g} has a fraction, so that it may be seconds",
                        where=where,
                        todo='say workload.time_unit = "s" or "ms"',
                    )
            if each.row.chat_id is not None and not self.time_unit and self.trace_format != "bailian":
                raise ConfigError(
                    "chat_id: is of Bailian's traces, whose times are seconds and whose blocks have 16 tokens",
                    where=where,
                    todo='say workload.trace_format = "bailian", or workload.time_unit where it is another trace',
                )
            yield each

    def _sessions(self) -> list[list[TimedRow]]:
        return Sessions(self.path, self._form, closed=self.concurrency is not None).of(self._rows())

    @functools.cached_property
    def decodes(self) -> bool:
        """Whether an answer of the trace has more than one token; `check` says what is wrong with the file."""
        try:
            return any(each.row.output_length > 1 for each in self._rows())
        except ConfigError:
            return True

    @functools.cached_property
    def content_digest(self) -> str:
        """The SHA-256 of the trace."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def sent(self, context_tokens: int) -> dict[str, Any]:
        """Return all that decides the requests; keys with the values of Mooncake's own traces are as if not said."""
        keys = super().sent(context_tokens)
        return {key: value for key, value in keys.items() if value not in _USUAL.get(key, ())}

    def script(self, context_tokens: int, tokenizer: Tokenizer | None, *, first_user: int = 0) -> Script:
        """Return the run of those requests that fit into `context_tokens`."""
        if tokenizer is None:
            raise AssertionError("the workload asked for a tokenizer")
        source = texts(tokenizer, seed=self.seed)
        left = LeftOut(
            longest=min(context_tokens, tokenizer.max_model_len or math.inf),
            shortest=source.first_overhead + 1,
            longest_with_answer=tokenizer.max_model_len,
        )
        prompts = Prompts(
            source,
            self._block_tokens,
            added=self._form.later_rows == "added",
            first_user=first_user,
            second=self.speed * (1.0 if self._unit == "s" else 1e3),
            left=left,
        )
        conversations: list[Conversation] = []
        for session in self._sessions():
            if session[0].after is None and session[0].at / prompts.second >= self.duration_s:
                continue
            turns = tuple(turn for turn in prompts.turns(session) if self._begins(turn))
            if turns:
                conversations.append(Conversation(first_user + len(conversations) + 1, turns))
        if not conversations:
            raise RunError(f"nothing is left to send: {left.words}", where=str(self.path))
        return Script(
            tuple(conversations),
            self.plain_warm_up(first_user),
            left_out=left.words,
            concurrency=self.concurrency,
        )

    def _begins(self, turn: Turn) -> bool:
        return turn.after_s is not None or turn.at_s < self.duration_s

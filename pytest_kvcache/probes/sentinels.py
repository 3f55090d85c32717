"""Prompts that no workload sends and that are the same in every run, so that KV of an earlier run would show."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_kvcache.workload.script import Message
from pytest_kvcache.workload.tokens import Texts, Tokenizer, message

#: Length in chunks of LMCache: enough to tell most of a prompt from all, and computed in a fraction of a second.
CHUNKS = 8
ANSWER_TOKENS = 8
#: Room for a chat template and the answer (tokens).
_ROOM = 128
#: Length where no prompt can be as long as a chunk; it still serves to check the device cache (tokens).
_SHORT = 512


@dataclass(frozen=True)
class Sentinel:
    """A prompt that belongs to one server.

    Args:
        home: Name of the server that computes the prompt first.
        message: The only message of the chat.
    """

    home: str
    message: Message


def sentinels(tokenizer: Tokenizer, servers: tuple[str, ...], *, chunk_tokens: int) -> tuple[Sentinel, ...]:
    """Return a sentinel for each server: a little longer than `CHUNKS` chunks, or as long as the model allows.

    Args:
        tokenizer: Tokenizer of the served model.
        servers: Names of the vLLM servers.
        chunk_tokens: LMCache's chunk size (tokens).

    Raises:
        RunError: The tokenizer has too few words.
    """
    vocabulary = tokenizer.words()
    wanted = CHUNKS * chunk_tokens + 1
    most = tokenizer.max_model_len - _ROOM if tokenizer.max_model_len else wanted
    count = max(1, min(wanted if chunk_tokens < most else _SHORT, most))
    texts = Texts(vocabulary, 0, 0, 0)
    return tuple(Sentinel(name, message("user", texts.words(count, "sentinel", name))) for name in servers)

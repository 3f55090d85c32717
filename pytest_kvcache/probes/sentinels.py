"""Prompts that no workload sends and that are the same in every run: what an earlier run left would answer them."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_kvcache.workload.script import Message
from pytest_kvcache.workload.tokens import Texts, Tokenizer, message

#: Length in chunks of LMCache: enough that "nearly all of it" means something, and computed in a fraction of a second.
CHUNKS = 8
ANSWER_TOKENS = 8
#: For a chat template and the answer (tokens).
_ROOM = 128
#: Where no prompt is as long as a chunk, the device cache is still to be looked at (tokens).
_SHORT = 512


@dataclass(frozen=True)
class Sentinel:
    """A prompt of a server's own.

    Args:
        home: Name of the server that computes it first.
        message: The chat's only one.
    """

    home: str
    message: Message


def sentinels(tokenizer: Tokenizer, servers: tuple[str, ...], *, chunk_tokens: int) -> tuple[Sentinel, ...]:
    """Return a sentinel for each server: as long as `CHUNKS` chunks and a little, or as the model allows.

    Args:
        tokenizer: The served one.
        servers: Names of the vLLM servers.
        chunk_tokens: LMCache's chunk size.

    Raises:
        RunError: The tokenizer has too few words.
    """
    vocabulary = tokenizer.words()
    wanted = CHUNKS * chunk_tokens + 1
    most = tokenizer.max_model_len - _ROOM if tokenizer.max_model_len else wanted
    count = max(1, min(wanted if chunk_tokens < most else _SHORT, most))
    texts = Texts(vocabulary, 0, 0, 0)
    return tuple(Sentinel(name, message("user", texts.words(count, "sentinel", name))) for name in servers)

"""The texts that users send: a shared beginning, a context of their own, a question.

Lengths are in words, each of them one token in the common tokenizers; the count that the server reports is what
results use.
"""

from __future__ import annotations

_WORD = "hi"


def filler(tokens: int) -> str:
    """Return `tokens` words of filler."""
    return " ".join([_WORD] * tokens)


def first_message(user: int, *, shared_tokens: int, context_tokens: int, question: int) -> str:
    """Return the first message of `user`: equal for all users up to the user's number."""
    return (
        f"Instructions for every reader: {filler(shared_tokens)}. "
        f"Notes that belong to reader {user}: {filler(context_tokens)}. "
        f"{next_question(question)}"
    )


def next_question(question: int) -> str:
    """Return the text of question number `question`."""
    return f"Question {question}: please tell me one more story, and let it end well."


def warmup_message(index: int) -> str:
    """Return a message that shares no prefix with a user's."""
    return f"Warming up, number {index}: {filler(100)}."

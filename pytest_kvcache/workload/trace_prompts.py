"""The prompts of a trace: equal hash ids at the start of two prompts are equal texts, and no more is known of them.

Each block becomes as many words, which follow from its hash id. Blocks without one get texts of their own: those of the
row, or of the session where a later row has the whole prompt again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pytest_kvcache.workload.script import LateText, Message, Turn
from pytest_kvcache.workload.tokens import Texts, message
from pytest_kvcache.workload.trace_rows import TraceRow
from pytest_kvcache.workload.trace_sessions import LeftOut, TimedRow


@dataclass
class Prompts:
    """Makes the turns of sessions.

    Args:
        texts: Where words come from.
        block_tokens: Tokens that a hash id stands for.
        added: Whether a later row of a session has what is new in its turn, and not the whole prompt.
        first_user: Two loads on a boot share no text where this differs.
        second: How many units of the trace's time are a second of the run.
        left: Counts what cannot be sent.
    """

    texts: Texts
    block_tokens: int
    added: bool
    first_user: int
    second: float
    left: LeftOut
    _made: dict[tuple[object, ...], LateText] = field(default_factory=dict)

    def turns(self, session: list[TimedRow]) -> tuple[Turn, ...]:
        """Return the turns of a session up to the first that cannot be sent; later ones are counted as left out."""
        return tuple(self._turns(session))

    def _turns(self, session: list[TimedRow]) -> Iterator[Turn]:
        history: tuple[Message, ...] = ()
        tokens, stopped = 0, False
        for number, each in enumerate(session, 1):
            row, overhead = each.row, self.texts.next_overhead if history else self.texts.first_overhead
            length = row.input_length + (tokens if self.added else 0)
            if stopped:
                self.left.follows(length)
            elif not self.left.takes(length, row.output_length, adds_too_little=row.input_length <= overhead):
                stopped = True
            else:
                prompt = (*history, message("user", *self._words(each, session[0].number, overhead)))
                after_s = None if each.after is None else each.after / self.second
                yield Turn(number, each.at / self.second, prompt, row.output_length, length, after_s)
                if self.added:
                    answer = self._late(row.output_length, "answer", each.number)
                    history = (*prompt, message("assistant", answer))
            tokens = length + row.output_length

    def _words(self, each: TimedRow, first_number: int, overhead: int) -> list[LateText]:
        names: list[tuple[object, ...]] = [("block", hash_id) for hash_id in each.row.hash_ids]
        if not names:
            own = each.number if self.added else first_number
            names = [("own block", own, i) for i in range(-(-each.row.input_length // self.block_tokens))]
        lengths = _lengths(each.row, len(names), self.block_tokens, overhead)
        return [self._late(words, *name) for name, words in zip(names, lengths, strict=True) if words]

    def _late(self, words: int, *name: object) -> LateText:
        key = (words, *name)
        if key not in self._made:
            self._made[key] = self.texts.late(words, self.first_user, *name)
        return self._made[key]


def _lengths(row: TraceRow, blocks: int, size: int, missing: int) -> list[int]:
    """Return each block's length in words; the last blocks are shorter by the chat template's tokens."""
    lengths = [size] * blocks
    lengths[-1] = row.input_length - size * (blocks - 1)
    for i in reversed(range(blocks)):
        taken = min(lengths[i], missing)
        lengths[i] -= taken
        missing -= taken
    return lengths

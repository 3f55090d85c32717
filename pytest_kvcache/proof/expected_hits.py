"""An oracle: what an LRU hierarchy of device cache, L1 and L2 would give for this workload, request by request (pure).

It takes the requests one after the other in the order of their starts, and knows what each prompt has in common with
earlier ones: all requests of a user begin with the prompt before, and all users with the shared prompt. A cache holds
whole pieces: blocks on the device, chunks in LMCache.

- Device (vLLM's `BlockPool`): a queue of free blocks, the least recently used in front. A request takes what it hits
  out of the queue and as many blocks from the front as it lacks; at its end its blocks go to the back, the last one
  first, so that the end of a prompt is evicted before its beginning. Block 0 is vLLM's own.
- L1: what this server computed, in chunks, least recently used out first. LMCache beside vLLM frees a fifth of it when
  it is four fifths full, and what comes from L2 passes through and does not stay (prefetch policy `default`); inside
  vLLM it frees a chunk when one is needed, and what comes from L2 stays (`inside`).
- L2: what any server stored, without limit.

Requests that run side by side hold their blocks at the same time; the oracle takes them in turn and so expects more
from the device than a loaded server gives. `gaps.LARGE` leaves room for that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pytest_kvcache.proof.claims import Expectable
from pytest_kvcache.proof.ledger import Tokens
from pytest_kvcache.serving.claim import Claim

_Piece = tuple[object, ...]
#: LMCache's own: above 80 % of L1, 20 % of it are freed (`--eviction-trigger-watermark`, `--eviction-ratio`).
_L1_TRIGGER, _L1_FREED = 0.8, 0.2
#: Hits of less than this share of all prompt tokens are too few to be asked for: overlapping requests may cost them.
LEAST = 0.02


@dataclass(frozen=True)
class OracleRequest:
    """One request, as the oracle sees it.

    Args:
        user: Whose conversation.
        prompt_tokens: Length of the prompt.
        answer_tokens: Of the answer; it takes device blocks too.
        server: Who answers.
        measured: False for what was sent before the counters were read: it fills the caches and is not counted.
    """

    user: int
    prompt_tokens: int
    answer_tokens: int
    server: str
    measured: bool = True


@dataclass(frozen=True)
class Hierarchy:
    """The caches of a pair.

    Args:
        claim: Which levels there are.
        block_tokens: vLLM's block size.
        device_blocks: KV blocks of each server, vLLM's own among them.
        chunk_tokens: LMCache's chunk size.
        l1_tokens: Tokens for which the L1 of each server has room.
        shared_tokens: Length of what all prompts begin with.
        answers_return: Whether the next prompt goes on with the answer that was given, or with a prepared one, whose
            KV was not computed by the answer.
        inside: Whether LMCache runs inside vLLM.
    """

    claim: Claim
    block_tokens: int
    device_blocks: int
    chunk_tokens: int
    l1_tokens: float
    shared_tokens: int = 0
    answers_return: bool = False
    inside: bool = False


@dataclass(frozen=True)
class Expected:
    """What the oracle says.

    Args:
        requests: Tokens of each measured request, in order.
        servers: Their sum by server.
    """

    requests: tuple[Tokens, ...]
    servers: dict[str, Tokens]

    @property
    def total(self) -> Tokens:
        """The sum."""
        return sum(self.servers.values(), Tokens())


def simulate(asks: Iterable[OracleRequest], caches: Hierarchy) -> Expected:
    """Return what `caches` give for `asks`, which are in the order of their starts."""
    devices: dict[str, _Device] = {}
    l1s: dict[str, _L1] = {}
    l2: set[_Piece] = set()
    requests, servers = [], dict[str, Tokens]()
    for number, ask in enumerate(asks):
        device = devices.setdefault(ask.server, _Device(max(0, caches.device_blocks - 1)))
        l1 = l1s.setdefault(ask.server, _L1(int(caches.l1_tokens // caches.chunk_tokens), inside=caches.inside))
        known = ask.prompt_tokens + (ask.answer_tokens if caches.answers_return else 0)
        blocks = _pieces(ask, caches.shared_tokens, caches.block_tokens, known)
        # The last token is computed in any case: without it there is nothing to go on from.
        usable = (ask.prompt_tokens - 1) // caches.block_tokens
        needed = -(-(ask.prompt_tokens + ask.answer_tokens) // caches.block_tokens)
        hit_blocks = device.run(blocks, usable, needed, owner=number)
        tokens = _offloaded(ask, caches, hit_blocks * caches.block_tokens, l1, l2)
        if ask.measured:
            requests.append(tokens)
            servers[ask.server] = servers.get(ask.server, Tokens()) + tokens
    return Expected(tuple(requests), servers)


def _offloaded(ask: OracleRequest, caches: Hierarchy, device_tokens: int, l1: _L1, l2: set[_Piece]) -> Tokens:
    if caches.claim is Claim.DEVICE:
        return Tokens(computed=ask.prompt_tokens - device_tokens, device=device_tokens)
    size = caches.chunk_tokens
    chunks = _pieces(ask, caches.shared_tokens, size, ask.prompt_tokens)
    levels: list[str] = []
    for chunk in chunks:
        if chunk in l1:
            levels.append("l1")
        elif caches.claim is Claim.L2 and chunk in l2:
            levels.append("l2")
        else:
            break
    l1.touch(chunks[: len(levels)])
    if caches.inside:
        l1.add([chunk for chunk, level in zip(chunks, levels, strict=False) if level == "l2"])
    l1.add(chunks[len(levels) :])
    l2.update(chunks)
    end = min(len(levels) * size, ask.prompt_tokens - 1)
    taken = {"l1": 0, "l2": 0}
    for index, level in enumerate(levels):
        taken[level] += max(0, min(end, (index + 1) * size) - max(device_tokens, index * size))
    found = {level: levels.count(level) * size for level in taken}
    return Tokens(
        computed=ask.prompt_tokens - device_tokens - taken["l1"] - taken["l2"],
        device=device_tokens,
        l1=taken["l1"],
        l2=taken["l2"],
        l1_found=found["l1"],
        l2_found=found["l2"],
        requested=len(chunks) * size,
    )


def expectable(expected: Expected, caches: Hierarchy, asks: Sequence[OracleRequest]) -> Expectable:
    """Return whether the workload can have hits in L1 and L2, and else why not, for people."""
    tokens = expected.total
    least = LEAST * tokens.total
    longest = max((ask.prompt_tokens for ask in asks), default=0)
    counts: dict[int, int] = {}
    for ask in asks:
        counts[ask.user] = counts.get(ask.user, 0) + 1
    if longest < caches.chunk_tokens:
        why = f"the longest prompt, {longest} tokens, is shorter than a chunk of LMCache ({caches.chunk_tokens})"
    elif max(counts.values(), default=0) < 2:
        why = "every user asks once, so that no prompt comes back"
    elif caches.claim is not Claim.DEVICE and caches.l1_tokens < _longest_of_one_server(asks):
        why = "L1 evicts what comes back before it does: raise the profile's l1_size_gb"
    else:
        why = "the device cache holds nearly all that comes back" if tokens.device else "no prompt comes back"
    return Expectable(
        l1="" if tokens.l1 > least else why if tokens.l2 <= least else "nearly all comes from L2",
        l2="" if tokens.l2 > least else why if tokens.l1 <= least else "L1 holds nearly all: no user changes servers",
    )


def _longest_of_one_server(asks: Sequence[OracleRequest]) -> int:
    """Return the tokens of the longest prompts of all users of the server that has the most."""
    longest: dict[str, dict[int, int]] = {}
    for ask in asks:
        own = longest.setdefault(ask.server, {})
        own[ask.user] = max(own.get(ask.user, 0), ask.prompt_tokens)
    return max((sum(own.values()) for own in longest.values()), default=0)


def _pieces(ask: OracleRequest, shared: int, size: int, known: int) -> list[_Piece]:
    """Name the whole pieces of a prompt so that equal beginnings have equal names."""
    return [("all", i) if (i + 1) * size <= shared else (ask.user, i) for i in range(known // size)]


@dataclass
class _Device:
    """vLLM's block pool: `queue` holds every free block by its content, None-like names for those without."""

    size: int
    queue: OrderedDict[_Piece, None] = field(init=False)

    def __post_init__(self) -> None:
        self.queue = OrderedDict((("empty", i), None) for i in range(self.size))

    def run(self, blocks: list[_Piece], usable: int, needed: int, *, owner: int) -> int:
        """Serve a request from start to end; return how many of its first blocks were there."""
        hits = 0
        while hits < min(usable, len(blocks)) and blocks[hits] in self.queue:
            del self.queue[blocks[hits]]
            hits += 1
        for _ in range(min(needed - hits, len(self.queue))):
            self.queue.popitem(last=False)
        held = blocks[:needed] + [("part", owner, i) for i in range(needed - len(blocks))]
        for piece in reversed(held[: self.size]):
            # A block whose twin is still there stays without a name of its own.
            self.queue[piece if piece not in self.queue else ("twin", owner, *piece)] = None
        return hits


class _L1:
    """LMCache's CPU RAM: the least recently used chunks go first, a fifth of all or one at a time."""

    def __init__(self, size: int, *, inside: bool) -> None:
        self._most = size if inside else _L1_TRIGGER * size
        self._freed = 0.0 if inside else _L1_FREED
        self._chunks: OrderedDict[_Piece, None] = OrderedDict()

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._chunks

    def touch(self, chunks: Iterable[_Piece]) -> None:
        """Note that they were read."""
        for chunk in chunks:
            if chunk in self._chunks:
                self._chunks.move_to_end(chunk)

    def add(self, chunks: Iterable[_Piece]) -> None:
        """Store chunks, and evict when the watermark is passed."""
        for chunk in chunks:
            self._chunks[chunk] = None
            self._chunks.move_to_end(chunk)
            if len(self._chunks) > self._most:
                for _ in range(min(len(self._chunks), max(1, int(self._freed * len(self._chunks))))):
                    self._chunks.popitem(last=False)

"""An oracle: the hits that an LRU hierarchy of device cache, L1 and L2 gives for each request of a workload (pure).

The oracle takes the requests one after the other in the order of their starts, and knows what each prompt has in common
with earlier ones: each request of a user begins with that user's prompt before, and all users begin with the shared
prompt. A cache holds whole pieces: blocks on the device, chunks in LMCache.

- Device (vLLM's `BlockPool`): a queue of free blocks, the least recently used in front. A request takes the blocks that
  it hits out of the queue, and as many blocks from the front as it lacks; at its end its blocks go to the back, the
  last block first, so that the end of a prompt is evicted before its beginning. Block 0 is vLLM's own.
- L1: chunks that this server computed, of which the least recently used are evicted first. LMCache as a server frees a
  fifth of L1 when four fifths are full, and chunks from L2 pass through and do not stay (prefetch policy `default`);
  LMCache inside vLLM frees a chunk when it needs one, and chunks from L2 stay (`inside`).
- L2: chunks that any server stored, without limit.

Requests that run side by side hold their blocks at the same time; the oracle takes them in turn and so expects more
from the device than a loaded server gives. `hit_differences.LARGE` allows for this.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pytest_kvcache.proof.claims import Expectable
from pytest_kvcache.proof.ledger import Tokens
from pytest_kvcache.serving.claim import Claim

_Piece = tuple[object, ...]
#: LMCache's own defaults: above 80 % of L1, 20 % of it are freed (`--eviction-trigger-watermark`, `--eviction-ratio`).
_L1_TRIGGER, _L1_FREED = 0.8, 0.2
#: Hits of less than this share of all prompt tokens are too few to be asked for: overlapping requests may cost them.
LEAST = 0.02


@dataclass(frozen=True)
class OracleRequest:
    """One request, as the oracle sees it.

    Args:
        user: Number of the user whose conversation it is; below zero for a yardstick.
        prompt_tokens: Length of the prompt.
        answer_tokens: Length of the answer, which takes device blocks too.
        server: Name of the server that answers.
        measured: False for a request sent before the counters were read, which fills caches and is not counted.
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
        claim: Claim of the tier, which says which levels there are.
        block_tokens: vLLM's block size (tokens).
        device_blocks: KV blocks of each server, vLLM's own among them.
        chunk_tokens: LMCache's chunk size (tokens).
        l1_tokens: Tokens for which the L1 of each server has room.
        shared_tokens: Length of the beginning that all prompts share.
        answers_return: Whether the next prompt contains the answer that was given; False where it contains a prepared
            answer, whose KV was not computed before.
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
    """The hits that the oracle expects.

    Args:
        requests: Tokens of each measured request, in order.
        servers: Sum of the tokens by server.
    """

    requests: tuple[Tokens, ...]
    servers: dict[str, Tokens]

    @property
    def total(self) -> Tokens:
        """The sum over all servers."""
        return sum(self.servers.values(), Tokens())


def simulate(asks: Iterable[OracleRequest], caches: Hierarchy) -> Expected:
    """Return the hits that `caches` give for the requests `asks`, which are in the order of their starts."""
    devices: dict[str, _Device] = {}
    l1s: dict[str, _L1] = {}
    l2: set[_Piece] = set()
    requests, servers = [], dict[str, Tokens]()
    for number, ask in enumerate(asks):
        device = devices.setdefault(ask.server, _Device(max(0, caches.device_blocks - 1)))
        l1 = l1s.setdefault(ask.server, _L1(int(caches.l1_tokens // caches.chunk_tokens), inside=caches.inside))
        known = ask.prompt_tokens + (ask.answer_tokens if caches.answers_return else 0)
        blocks = _pieces(ask, caches.shared_tokens, caches.block_tokens, known)
        # The last token of a prompt is always computed, since the answer follows from it.
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
    """Return whether the workload can have hits in L1 and L2, with the reasons for people where it cannot."""
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
    """Return the sum of each user's longest prompt (tokens) on the server where this sum is largest."""
    longest: dict[str, dict[int, int]] = {}
    for ask in asks:
        own = longest.setdefault(ask.server, {})
        own[ask.user] = max(own.get(ask.user, 0), ask.prompt_tokens)
    return max((sum(own.values()) for own in longest.values()), default=0)


def _pieces(ask: OracleRequest, shared: int, size: int, known: int) -> list[_Piece]:
    """Name the whole pieces of a prompt so that equal beginnings have equal names."""
    shared = shared if ask.user >= 0 else 0  # yardsticks share nothing
    return [("all", i) if (i + 1) * size <= shared else (ask.user, i) for i in range(known // size)]


@dataclass
class _Device:
    """vLLM's block pool: `queue` names every free block by its content, or by a unique name where it has none."""

    size: int
    queue: OrderedDict[_Piece, None] = field(init=False)

    def __post_init__(self) -> None:
        self.queue = OrderedDict((("empty", i), None) for i in range(self.size))

    def run(self, blocks: list[_Piece], usable: int, needed: int, *, owner: int) -> int:
        """Serve a request from start to end; return how many of its first blocks were in the cache."""
        hits = 0
        while hits < min(usable, len(blocks)) and blocks[hits] in self.queue:
            del self.queue[blocks[hits]]
            hits += 1
        for _ in range(min(needed - hits, len(self.queue))):
            self.queue.popitem(last=False)
        held = blocks[:needed] + [("part", owner, i) for i in range(needed - len(blocks))]
        for piece in reversed(held[: self.size]):
            # A block with the content of another free block gets a unique name, under which it is never hit.
            self.queue[piece if piece not in self.queue else ("twin", owner, *piece)] = None
        return hits


class _L1:
    """LMCache's CPU RAM: it evicts the least recently used chunks, a fifth of all or one at a time."""

    def __init__(self, size: int, *, inside: bool) -> None:
        self._most = size if inside else _L1_TRIGGER * size
        self._freed = 0.0 if inside else _L1_FREED
        self._chunks: OrderedDict[_Piece, None] = OrderedDict()

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._chunks

    def touch(self, chunks: Iterable[_Piece]) -> None:
        """Note that `chunks` were read."""
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

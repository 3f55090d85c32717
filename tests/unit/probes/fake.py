"""A pair that is not there: caches as sets, shared as its tier says, with whatever is to be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_kvcache.probes.answers import ProbeAnswer, Token
from pytest_kvcache.probes.client import ProbeReply
from pytest_kvcache.probes.posting import ProbeError
from pytest_kvcache.probes.sentinels import Sentinel
from pytest_kvcache.probes.steps import SentinelAnswer, across, again, cold, emptied, reloaded
from pytest_kvcache.proof.ledger import Tokens
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.telemetry.counters import Counters
from pytest_kvcache.workload.tokens import message

SERVERS = ("vllm-0", "vllm-1")
SENTINELS = tuple(Sentinel(name, message("user", name)) for name in SERVERS)
CHUNK, PROMPT = 128, 8 * 128 + 19
_RIGHT, _WRONG = -0.5, -2.5


@dataclass
class Words:
    """A tokenizer of a hundred words.

    Args:
        max_model_len: What the model takes.
    """

    max_model_len: int | None

    def count(self, messages: object) -> int:
        """Not needed."""
        raise NotImplementedError

    def words(self) -> tuple[str, ...]:
        """Return the words."""
        return tuple(f"w{n}" for n in range(100))


@dataclass
class FakePair:
    """Two servers.

    Args:
        claim: Levels that are there.
        l2: Sentinels in the shared storage, by their home.
        shares: Whether the servers find in it what the other has stored.
        corrupt: Levels whose content answers differently.
        sticks: Levels that resets leave as they are.
        stores: Whether anything reaches the shared storage.
        split: Whether LMCache tells L1 from L2.
        side_by_side: Whether both servers are asked at once.
    """

    claim: Claim
    l2: set[str] = field(default_factory=set)
    shares: bool = True
    corrupt: tuple[str, ...] = ()
    sticks: tuple[str, ...] = ()
    stores: bool = True
    split: bool = True
    device: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in SERVERS})
    l1: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in SERVERS})
    servers: tuple[str, ...] = SERVERS
    side_by_side: bool = True

    def tokenizer(self) -> Words:
        """Return a tokenizer of a hundred words."""
        return Words(9000)

    def counters(self, server: str) -> dict[str, Counters]:
        """Return counters of a server that nobody has asked."""
        return {server: {"vllm:prompt_tokens_total": 0.0}}

    def ask(self, server: str, sentinel: Sentinel) -> ProbeReply:
        """Answer from the first level that has the sentinel."""
        level = self._level(server, sentinel.home)
        self.device[server].add(sentinel.home)
        if self.claim is not Claim.DEVICE:
            self.l1[server].add(sentinel.home)
        if self.claim is Claim.L2 and self.stores:
            self.l2.add(sentinel.home)
        cached = PROMPT // CHUNK * CHUNK if level else 0
        logprob = _WRONG if level in self.corrupt else _RIGHT
        answer = ProbeAnswer(PROMPT, cached, (Token("token_id:7", logprob, {"token_id:7": logprob}),))
        told = "unsplit" if level in {"l1", "l2"} and not self.split else level
        found = {f"{told}_found": cached} if level in {"l1", "l2"} else {}
        split = {told: cached} if level else {}
        return ProbeReply(answer, Tokens(computed=PROMPT - cached, requested=PROMPT, **split, **found))

    def drain(self, server: str, *, stored_chunks: int = 0) -> None:
        """Complain where chunks were not stored."""
        if stored_chunks and not self.stores:
            raise ProbeError(f"of {stored_chunks} chunks that it computed 0 are in the shared storage", where=server)

    def reset_device(self, server: str) -> None:
        """Forget what the device has."""
        if "device" not in self.sticks:
            self.device[server].clear()

    def clear_l1(self, server: str) -> None:
        """Forget what L1 has."""
        if "l1" not in self.sticks:
            self.l1[server].clear()

    def _level(self, server: str, home: str) -> str:
        if home in self.device[server]:
            return "device"
        if home in self.l1[server]:
            return "l1"
        return "l2" if home in self.l2 and (self.shares or home == server) else ""


def whole(pair: FakePair) -> list[SentinelAnswer]:
    """Take all steps."""
    return [
        *cold(pair, SENTINELS),
        *again(pair, SENTINELS),
        *reloaded(pair, SENTINELS),
        *across(pair, SENTINELS),
        *emptied(pair, SENTINELS),
    ]

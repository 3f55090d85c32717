"""A deployment that stands, as the probes may use it: nothing is emptied, and others may use it at the same time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from pytest_kvcache.probes.client import PairClient, ProbeReply
from pytest_kvcache.probes.posting import ProbeError
from pytest_kvcache.probes.sentinels import Sentinel
from pytest_kvcache.proof.ledger import Tokens
from pytest_kvcache.telemetry.counters import lmcache_beside
from pytest_kvcache.telemetry.transfers import stores_under_way
from pytest_kvcache.workload.salted import SaltedTokenizer
from pytest_kvcache.workload.tokens import Tokenizer

#: A store begins when vLLM has let go of the blocks: so long it is waited for at least, and at most (s).
_LEAST_S, _MOST_S = 2.0, 60.0
_POLL_S = 0.2


@dataclass(frozen=True)
class StandingClient(PairClient):
    """What the probes may do with a deployment.

    Args:
        salt: Makes the sentinels of each pass new to all caches.
    """

    salt: str = ""

    @property
    def side_by_side(self) -> bool:
        """One at a time: servers of a deployment may have an LMCache in common."""
        return False

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of the first server, with other words in each pass."""
        return SaltedTokenizer(super().tokenizer(), self.salt)

    def ask(self, server: str, sentinel: Sentinel) -> ProbeReply:
        """Send a sentinel to one server; where the counters have others' prompts too, the answer alone counts."""
        reply = super().ask(server, sentinel)
        answer = reply.answer
        if round(reply.tokens.total) == answer.prompt_tokens:
            return reply
        computed = float(answer.prompt_tokens - answer.cached_tokens)
        return replace(reply, tokens=Tokens(computed=computed, unsplit=float(answer.cached_tokens)))

    def drain(self, server: str, *, stored_chunks: int = 0) -> None:
        """Wait until no store of the server's LMCache is under way; requests of others are not waited for.

        Raises:
            ProbeError: Stores do not end.
        """
        del stored_chunks  # counters of a deployment have all that it ever stored
        started_s = time.monotonic()
        while True:
            found = self.counters(server)
            under_way = stores_under_way(found.get(lmcache_beside(server), found[server]))
            waited_s = time.monotonic() - started_s
            if waited_s >= _LEAST_S and not under_way:
                return
            if waited_s > _MOST_S:
                raise ProbeError(f"{under_way:.0f} stores are still under way after {_MOST_S:.0f} s", where=server)
            time.sleep(_POLL_S)

    def reset_device(self, server: str) -> None:
        """Refuse: a deployment's caches are not the run's to empty.

        Raises:
            ProbeError: Always.
        """
        raise ProbeError("its device cache is not emptied: the deployment is others' too", where=server)

    def clear_l1(self, server: str) -> None:
        """Refuse: a deployment's caches are not the run's to empty.

        Raises:
            ProbeError: Always.
        """
        raise ProbeError("its L1 is not emptied: the deployment is others' too", where=server)

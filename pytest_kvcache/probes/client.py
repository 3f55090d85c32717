"""The client of the probes, which talks to each server of a pair directly and not through the router."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests

from pytest_kvcache.probes import answers
from pytest_kvcache.probes.answers import ProbeAnswer
from pytest_kvcache.probes.posting import Poster, ProbeError
from pytest_kvcache.probes.sentinels import ANSWER_TOKENS, Sentinel
from pytest_kvcache.proof.ledger import Tokens, build_ledger
from pytest_kvcache.serving.control import Control
from pytest_kvcache.telemetry import internal_api
from pytest_kvcache.telemetry.cache_sizes import kv_bytes_per_token
from pytest_kvcache.telemetry.counters import Counters, growth, lmcache_beside, lmcache_of, ranks_as_one, total
from pytest_kvcache.telemetry.prometheus import FOREIGN, scrape_all
from pytest_kvcache.telemetry.transfers import Transfers, stores_under_way, transfers_of
from pytest_kvcache.workload.tokens import ServedTokenizer, Tokenizer

#: Limit for counters to grow: they follow an answer (vLLM) or an event bus (LMCache) by a fraction of a second.
_COUNTED_S = 2.0
#: Limit for stores to end: they wait for the storage, and blocks are held until they are stored.
_DRAIN_S = 120.0
#: Limit for a store to begin, which it does when vLLM has let go of the blocks.
_GRACE_S = 5.0
_POLL_S = 0.05
#: Number of resets of a device cache that does not say whether it was emptied; they take half a second in all.
_UNSAID_RESETS = 10
_PROMPTS = "vllm:prompt_tokens_total"
#: Words with which vLLM refuses to write NaN into JSON (with HTTP 400): it has computed with damaged KV.
_NO_NUMBERS = "Out of range float values"
_BEST = 5


@dataclass(frozen=True)
class ProbeReply:
    """An answer to a prompt, and the source of the prompt's KV.

    Args:
        answer: Answer of the server.
        tokens: Where the prompt's KV came from, by the growth of the server's and its LMCache's counters.
    """

    answer: ProbeAnswer
    tokens: Tokens


@dataclass(frozen=True)
class PairClient:
    """What the probes may do with a pair.

    Args:
        server_urls: Base URLs without /v1, by name of the vLLM server.
        metrics_urls: Prometheus endpoints, by name of the component.
        model: Model name that requests carry.
        chunk_tokens: LMCache's chunk size.
        extra_body: More fields of each request.
        authorization: Value of the header of that name, "" for none.
        control: Empties caches where these endpoints serve nobody beyond the server's machine; None where they serve
            this one.
    """

    server_urls: Mapping[str, str]
    metrics_urls: Mapping[str, str]
    model: str
    chunk_tokens: int
    extra_body: Mapping[str, Any]
    authorization: str = field(default="", repr=False)
    control: Control | None = field(default=None, repr=False)

    @property
    def _poster(self) -> Poster:
        return Poster(self.authorization, self.control)

    @property
    def servers(self) -> tuple[str, ...]:
        """Names of the vLLM servers."""
        return tuple(self.server_urls)

    @property
    def side_by_side(self) -> bool:
        """Whether several servers may be asked at once: each of a booted pair has caches and counters of its own."""
        return True

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of the first server."""
        return ServedTokenizer(next(iter(self.server_urls.values())), self.model, authorization=self.authorization)

    def counters(self, server: str) -> dict[str, Counters]:
        """Return the counters of a server and of the LMCache beside it, by component.

        Raises:
            ProbeError: The server or its LMCache does not answer.
        """
        names = (server, *lmcache_of(server, self.metrics_urls))
        found = scrape_all({name: self.metrics_urls[name] for name in names})
        for name, counters in found.items():
            if not counters:
                raise ProbeError("its counters cannot be read", where=name, todo="its log says why")
            if FOREIGN in counters:
                todo = "another program has its port, or the engine has no such endpoint"
                raise ProbeError("its /metrics is no Prometheus text", where=name, todo=todo)
        return ranks_as_one(found)

    def ask(self, server: str, sentinel: Sentinel) -> ProbeReply:
        """Send a sentinel to one server and wait until the counters have it.

        Raises:
            ProbeError: The request failed.
        """
        before = self.counters(server)
        text = sentinel.message
        body = {
            "model": self.model,
            "messages": [{"role": text.role, "content": text.text}],
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": True,
            "top_logprobs": _BEST,
            "return_tokens_as_token_ids": True,
            **self.extra_body,
        }
        answer = self._answered(server, body)
        after = self._counted(server, before, answer.prompt_tokens if answer else 0)
        ledger = build_ledger(
            growth(before, after),
            chunk_tokens=self.chunk_tokens,
            kv_bytes_per_token=kv_bytes_per_token(after, chunk_tokens=self.chunk_tokens),
        )
        tokens = ledger.servers[server]
        return ProbeReply(answer or answers.without_numbers(round(tokens.total), round(tokens.cached)), tokens)

    def _answered(self, server: str, body: Mapping[str, Any]) -> ProbeAnswer | None:
        """Return the answer of a server, None where its log-probabilities are not numbers."""
        try:
            said = self._poster.post(server, f"{self.server_urls[server]}/v1/chat/completions", body)
        except ProbeError as error:
            if _NO_NUMBERS in error.what:
                return None
            raise
        try:
            return answers.parse(said)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            raise ProbeError(f"is no answer with log-probabilities: {str(said)[:200]}", where=server) from None

    def drain(self, server: str, *, stored_chunks: int = 0) -> None:
        """Return when a server and its LMCache have nothing under way.

        Args:
            server: Name of the vLLM server.
            stored_chunks: Chunks that must be in the shared storage, since nothing is under way for a moment between
                vLLM's answer and the store.

        Raises:
            ProbeError: Something is still under way at the limit, or chunks were not stored.
        """
        idle_since_s = 0.0

        def under_way() -> str:
            nonlocal idle_since_s
            found = self.counters(server)
            running = sum(total(found[server], f"vllm:num_requests_{what}") for what in ("running", "waiting"))
            if running:
                return f"{running:.0f} requests are still running"
            beside = found.get(lmcache_beside(server), found[server])
            if stores := stores_under_way(beside):
                idle_since_s = 0.0
                return f"{stores:.0f} stores into the shared storage are still under way"
            done = transfers_of(beside)
            if done.l2_stored >= stored_chunks:
                return ""
            idle_since_s = idle_since_s or time.monotonic()
            if done.l2_unstored or time.monotonic() - idle_since_s > _GRACE_S:
                raise ProbeError(
                    f"of {stored_chunks} chunks that it computed {done.l2_stored:.0f} are in the shared storage "
                    f"({done.l2_sent:.0f} were handed to it)",
                    where=f"{server}'s LMCache",
                    todo=_why_unstored(done),
                )
            return f"{stored_chunks - done.l2_stored:.0f} chunks are still to be stored"

        _until_nothing(under_way, server, "the storage is slow, or a store does not end: LMCache's log says which")

    def reset_device(self, server: str) -> None:
        """Empty vLLM's prefix cache.

        Raises:
            ProbeError: The server refused, or still held blocks at the limit.
        """
        url = f"{self.server_urls[server]}/reset_prefix_cache"
        unsaid = 0

        def held() -> str:
            # vLLM answers 200 whether or not it has emptied the cache; before 0.26 it says no more. An older vLLM is
            # asked several times, since a store may hold blocks for a moment; the next answers show whether it worked.
            nonlocal unsaid
            said = self._poster.empty(server, url, None)
            unsaid += not said
            return "" if said.get("success") or unsaid >= _UNSAID_RESETS else "its prefix cache is still held"

        _until_nothing(held, server, "something keeps its blocks: a request, or a store that does not end")

    def clear_l1(self, server: str) -> None:
        """Empty the L1 of a server's LMCache, where the server has one.

        Raises:
            ProbeError: LMCache refused.
        """
        for name in lmcache_of(server, self.metrics_urls):
            metrics_url = self.metrics_urls[name]
            if internal_api.is_relayed(metrics_url):
                self._poster.empty(name, f"{metrics_url.removesuffix('metrics')}clear", None)
                continue
            if internal_api.is_internal(metrics_url):
                try:
                    internal_api.clear_l1(metrics_url)
                except requests.RequestException as error:
                    raise ProbeError(f"did not empty its L1: {error}", where=name) from None
                continue
            base = metrics_url.removesuffix("/metrics")
            said = self._poster.empty(name, f"{base}/cache/clear", {"tier": "l1"}, absent_ok=True)
            cleared: object = {"tier": "l1"}
            if said is None:  # LMCache before 0.5.1, whose call empties L1 and nothing else
                said, cleared = self._poster.empty(name, f"{base}/clear-cache", None), None
            if said.get("status") != "ok" or said.get("cleared") != cleared:
                raise ProbeError(f"did not empty its L1: {str(said)[:200]}", where=name)

    def _counted(self, server: str, before: Mapping[str, Counters], prompt_tokens: int) -> dict[str, Counters]:
        """Return the counters once they have a prompt and LMCache's lookup of it, or as they are at the limit."""
        deadline = time.monotonic() + _COUNTED_S
        waits = prompt_tokens > self.chunk_tokens
        while True:
            now = self.counters(server)
            beside = lmcache_beside(server)
            counted = total(now[server], _PROMPTS) > total(before[server], _PROMPTS)
            looked_up = not waits or beside not in now or _lookups(now[beside]) > _lookups(before[beside])
            if counted and looked_up:
                return now
            if time.monotonic() > deadline:
                return now
            time.sleep(_POLL_S)


def _lookups(counters: Counters) -> float:
    # LMCache before 0.5.5 does not count lookups as a server, but all versions count their tokens at the same moment.
    names = ("lmcache_mp_lookup_requested_tokens_total", "lmcache:num_lookup_requests_total")
    return sum(total(counters, name) for name in names)


def _why_unstored(done: Transfers) -> str:
    """Return the likely cause why a prompt's chunks are not in the shared storage."""
    if done.l2_sent:
        return "wrong bucket or path, no right to write, or no space: its log says which"
    if done.l1_stored:
        return done.without_storage if done.in_process else "it has no L2 adapter: look at its --l2-adapter in run.json"
    return "vLLM gave it nothing: the connector is not loaded or does nothing, look at --kv-transfer-config in run.json"


def _until_nothing(what: Callable[[], str], server: str, todo: str) -> None:
    deadline = time.monotonic() + _DRAIN_S
    while found := what():
        if time.monotonic() > deadline:
            raise ProbeError(f"{found} after {_DRAIN_S:.0f} s", where=server, todo=todo)
        time.sleep(_POLL_S)

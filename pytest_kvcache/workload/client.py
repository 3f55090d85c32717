"""One streamed chat completion: send it, stamp what arrives, say what became of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from pytest_kvcache.workload import records
from pytest_kvcache.workload.records import RequestRecord

Message = dict[str, str]


@dataclass(frozen=True)
class Endpoint:
    """Where and how requests are sent.

    Args:
        base_url: With /v1.
        model: The name that requests carry.
        answer_tokens: `max_tokens` of a request.
        ignore_eos: Whether answers have exactly that length (an extension of vLLM).
        timeout_s: A request that takes longer has failed.
    """

    base_url: str
    model: str
    answer_tokens: int
    ignore_eos: bool
    timeout_s: float

    def body(self, messages: list[Message]) -> bytes:
        """Return the encoded request for `messages`."""
        request: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.answer_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            request["ignore_eos"] = True
        return json.dumps(request).encode()


class StreamError(Exception):
    """A stream that is not what the API promises.

    Args:
        status: For the record.
        what: In words.
    """

    def __init__(self, status: str, what: str) -> None:
        self.status = status
        super().__init__(what)


class Client:
    """Sends requests and fills in their records. Never retries: a failure is a result.

    Args:
        session: The HTTP session; without a limit on connections.
        endpoint: Where to.
        start: Loop time (s) at which the run starts; stamps count from it.
    """

    def __init__(self, session: aiohttp.ClientSession, endpoint: Endpoint, start: float) -> None:
        self._session = session
        self._endpoint = endpoint
        self._start = start
        self._loop = asyncio.get_running_loop()

    async def ask(self, messages: list[Message], record: RequestRecord) -> str:
        """Send `messages`, fill in `record` and return the answer's text ("" where the request failed)."""
        body = self._endpoint.body(messages)
        text: list[str] = []
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                await self._stream(body, record, text)
            record.status = records.OK
            return "".join(text)
        except StreamError as error:
            record.status, record.error = error.status, str(error)
        except TimeoutError:
            record.status = records.TIMED_OUT
            record.error = f"not finished after {self._endpoint.timeout_s:g} s"
        except aiohttp.ClientConnectorError as error:
            record.status, record.error = records.NO_CONNECTION, str(error)
        except aiohttp.ClientError as error:
            record.status, record.error = records.BROKEN, f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            record.status, record.error = records.CANCELLED, "the run was ended first"
            raise
        return ""

    async def _stream(self, body: bytes, record: RequestRecord, text: list[str]) -> None:
        record.actual_start_s = self._now()
        url = f"{self._endpoint.base_url}/chat/completions"
        async with self._session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
            if response.status != 200:
                detail = (await response.text())[:300]
                raise StreamError(records.HTTP_ERROR, f"HTTP {response.status}: {detail}")
            done = False
            async for at, event in self._events(response):
                if event == b"[DONE]":
                    done = True
                    continue
                _read_event(event, at, record, text)
        if not done:
            raise StreamError(records.BROKEN, "the stream ended before [DONE]")
        if record.first_token_s is None:
            raise StreamError(records.EMPTY, "no token arrived")
        if record.prompt_tokens is None:
            raise StreamError(records.MALFORMED, "no usage in the stream")

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[tuple[float, bytes]]:
        """Yield the data of each server-sent event with the time at which its last byte arrived."""
        rest = b""
        async for piece in response.content.iter_any():
            at = self._now()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield at, line[5:].strip()

    def _now(self) -> float:
        return self._loop.time() - self._start


def _read_event(event: bytes, at: float, record: RequestRecord, text: list[str]) -> None:
    try:
        data = json.loads(event)
        if "error" in data:
            raise StreamError(records.HTTP_ERROR, f"error in the stream: {str(data['error'])[:300]}")
        for choice in data.get("choices", ()):
            delta = choice.get("delta", {})
            _read_server(delta.get("role"), record)
            piece = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
            if piece:
                if record.first_token_s is None:
                    record.first_token_s = at
                record.last_token_s = at
                record.token_times_s.append(at)
                text.append(delta.get("content") or "")
        _read_usage(data.get("usage"), record)
        _read_metrics(data.get("metrics"), record)
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise StreamError(records.MALFORMED, f"{type(error).__name__} in event {event[:120]!r}") from error


def _read_server(role: str | None, record: RequestRecord) -> None:
    # serving/vllm.py has each server name itself in its role.
    if role and "@" in role:
        record.server = role.partition("@")[2]


def _read_usage(usage: dict[str, Any] | None, record: RequestRecord) -> None:
    if usage:
        record.prompt_tokens = usage["prompt_tokens"]
        record.generated_tokens = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        record.cached_tokens = details.get("cached_tokens")


def _read_metrics(metrics: dict[str, Any] | None, record: RequestRecord) -> None:
    if metrics:
        queue, ttft = metrics.get("queue_time_ms"), metrics.get("time_to_first_token_ms")
        record.server_queue_s = None if queue is None else queue / 1e3
        record.server_ttft_s = None if ttft is None else ttft / 1e3

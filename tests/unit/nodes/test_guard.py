"""Who may ask what of a server that listens beyond its machine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.serving.nodes.guard import KEY, READ, SERVED, Guard

SECRET = "planted-key-of-a-boot"
BEARER = [(b"authorization", f"Bearer {SECRET}".encode())]
OWN, OTHER = "10.77.0.11", "10.77.0.13"
#: Endpoints that vLLM 0.32 has beside those of prompts, those of the developer mode among them.
REFUSED = (
    "/reset_prefix_cache", "/reset_mm_cache", "/collective_rpc", "/sleep", "/wake_up", "/server_info", "/pause",
    "/update_weights", "/start_profile", "/v1/load_lora_adapter", "/invocations", "/pooling", "/score", "/load",
    "/docs", "/", "/health/", "//reset_prefix_cache", "/tokenize/",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)


def asked(
    path: str, *, method: str = "POST", headers: list[tuple[bytes, bytes]] | None = None, client: str = OTHER
) -> int:
    """Return the status with which a request is refused, 200 where it passes."""
    scope = {"type": "http", "method": method, "path": path, "headers": headers or []}
    ends = {"client": (client, 40000), "server": (OWN, 8000)}
    sent: list[Mapping[str, Any]] = []

    async def app(*_: object) -> None:
        sent.append({"status": 200})

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(Guard(app)({**scope, **ends}, None, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("path", SERVED)
def test_prompts_need_the_key(path: str) -> None:
    """Without the key, or with another one, nobody sends prompts; with it the whole cluster does."""
    assert asked(path) == 401
    assert asked(path, headers=[(b"authorization", b"Bearer other")]) == 401
    assert asked(path, headers=[*BEARER, *BEARER]) == 401
    assert asked(path, headers=[(b"authorization", f"bearer {SECRET}".encode())]) == 401
    assert asked(path, headers=BEARER) == 200


@pytest.mark.parametrize("path", REFUSED)
def test_what_changes_a_server_is_done_on_its_node(path: str) -> None:
    """Endpoints of the developer mode, and all that are not named, serve nobody beyond the node, whatever the key."""
    assert asked(path) == 401
    assert asked(path, headers=BEARER) == 403
    assert asked(path, client=OWN) == 401
    assert asked(path, headers=BEARER, client=OWN) == 200


@pytest.mark.parametrize("path", sorted(READ))
def test_health_and_counters_are_read_without_a_key(path: str) -> None:
    """The router asks for health, and the load for counters, and neither has a key to show there; nobody writes."""
    assert asked(path, method="GET") == 200
    assert asked(path, method="POST") == 401


@given(path=st.text(max_size=30), method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"]))
def test_a_stranger_gets_nothing(path: str, method: str) -> None:
    """Whatever is asked without the key is refused, but for reading health and counters."""
    passes = method in {"GET", "HEAD"} and path in READ
    assert (asked(path, method=method) == 200) == passes


def test_a_forwarded_address_is_no_address() -> None:
    """A header that names the server's own address opens nothing: the connection's address counts."""
    more = [(b"x-forwarded-for", OWN.encode()), (b"forwarded", f"for={OWN}".encode())]
    assert asked("/sleep", headers=[*BEARER, *more]) == 403


def test_websockets_are_closed() -> None:
    """A websocket without the key is closed before it is accepted."""
    sent: list[Mapping[str, Any]] = []

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    async def app(*_: object) -> None:
        sent.append({"type": "passed"})

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "client": (OTHER, 1), "server": (OWN, 2)}
    asyncio.run(Guard(app)(scope, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_no_key_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without a key does not start: it would be open to the cluster."""
    monkeypatch.delenv(KEY)
    with pytest.raises(RuntimeError, match="VLLM_API_KEY is not set"):
        Guard(None)  # type: ignore[arg-type]

"""Addresses, keys and certificates of a load: what is taken, what is refused in one line, and what never shows."""

from __future__ import annotations

import base64
import ipaddress
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache import redaction
from pytest_kvcache.client import framing, wire
from pytest_kvcache.client.addresses import answering
from pytest_kvcache.client.exchange import Exchange
from pytest_kvcache.endpoint.address import below, endpoint, host_header, host_of, read_key, without_version
from pytest_kvcache.endpoint.certificates import ca_bundle, tls_context, verification
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.load.answers import settle
from pytest_kvcache.load.records import RequestRecord

SECRET = "sk-Tr0ub4dor&3/äé"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget the secrets of a test."""
    yield
    redaction.forget()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("https://host/prefix/v1?api-version=1", "https://host/prefix/v1?api-version=1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        (" http://host/v1\n", "http://host/v1"),
        ("http://host/v1#part", "http://host/v1"),
        ("HTTP://Host:80/v1", "http://host:80/v1"),
        ("http://bücher.example:8000/v1/", "http://xn--bcher-kva.example:8000/v1/"),
        ("http://BÜCHER.example/v1", "http://xn--bcher-kva.example/v1"),
        ("http://xn--bcher-kva.example/v1", "http://xn--bcher-kva.example/v1"),
        ("http://ho\u200bst/v1", "http://host/v1"),
        ("http://vllm_0.kv.svc.cluster.local./v1", "http://vllm_0.kv.svc.cluster.local./v1"),
        ("http://[fd00::7]:8000/v1", "http://[fd00::7]:8000/v1"),
        ("http://host/modèle%20a/v1?k=ü&a=%C3%BC", "http://host/mod%C3%A8le%20a/v1?k=%C3%BC&a=%C3%BC"),
        ("http://host/~a/(b)/v1?c=[1]", "http://host/~a/(b)/v1?c=[1]"),
        ("http://host/models", "http://host/models"),
        ("http://host/mycompletions", "http://host/mycompletions"),
    ],
)
def test_an_address_keeps_what_matters(text: str, url: str) -> None:
    """Host, port, path prefix and query stay, in the letters that a request may have; twice is once."""
    assert endpoint(text, where="--base-url").url == url
    assert endpoint(url, where="--base-url").url == url


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("localhost:8000/v1", "must begin with http:// or https://, not 'localhost'"),
        ("ftp://host/v1", "not 'ftp'"),
        ("host/v1", "not 'nothing'"),
        ("", "not 'nothing'"),
        ("http:///v1", "names no host"),
        ("http://host:99999/v1", "Port out of range"),
        ("http://host:http/v1", "Port could not be cast"),
        ("http://[::1/v1", "is no URL"),
        ("http://host:0/v1", "port 0"),
        ("http://a..b/v1", "label empty or too long"),
        ("http://.host/v1", "label empty or too long"),
        (f"http://{'a' * 64}.com/v1", "label empty or too long"),
        ("http://host/v1/chat/completions", "ends with /chat/completions, which a load adds by itself"),
        ("http://host/prefix/v1/chat/completions/?api-version=1", "give the address up to there: …/prefix/v1"),
        ("http://host/v1/completions", "ends with /completions"),
        ("http://host/completions", "…/v1"),
        ("http://ho st/v1", "space"),
        ("http://host/v1\r\nX-Evil: 1", "a space or a control character"),
    ],
)
def test_a_wrong_address_is_one_line(text: str, told: str) -> None:
    """Scheme, host and port are checked before anything is sent, and the option is named."""
    with pytest.raises(ConfigError) as error:
        endpoint(text, where="--base-url")
    assert len(str(error.value).splitlines()) <= 2
    assert told in str(error.value)


def test_a_password_becomes_a_header() -> None:
    """User and password are sent as basic authentication, and are in no URL; beside a key they are refused."""
    found = endpoint("https://me:p%40ss@host:8443/v1", where="--base-url")
    assert found.url == "https://host:8443/v1"
    assert base64.b64decode(found.authorization.removeprefix("Basic ")) == b"me:p@ss"
    with pytest.raises(ConfigError, match="beside --api-key-env") as error:
        endpoint("https://me:p%40ss@host/v1", where="--base-url", key="sk-1")
    assert "p%40ss" not in str(error.value)
    with pytest.raises(ConfigError) as error:
        endpoint("http://me:hunter22@host:port/v1", where="--base-url")
    assert "hunter22" not in str(error.value)


def test_paths_below_an_address() -> None:
    """Paths are added before the query, and the tokenizer's is beside /v1."""
    url = "https://h/a/v1?k=1"
    assert below(url, "chat/completions") == "https://h/a/v1/chat/completions?k=1"
    assert without_version(url) == "https://h/a?k=1"
    assert below(without_version("http://h:1/v1/"), "tokenize") == "http://h:1/tokenize"
    assert without_version("http://h:1") == "http://h:1"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "is not set"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("sk-a\nb", "line end"),
        ("sk a", "space"),
        ("sk-ü", "ASCII"),
    ],
)
def test_a_key_that_no_header_may_hold_is_refused(value: str | None, told: str) -> None:
    """A variable that is not set, or that holds more than a key, is named without what it holds."""
    with pytest.raises(ConfigError, match=told) as error:
        read_key("MY_KEY", {} if value is None else {"MY_KEY": value})
    assert "MY_KEY" in str(error.value)
    assert not value or value.strip() == "" or value not in str(error.value)


def test_a_key_with_a_line_end_is_stripped() -> None:
    """Files of secrets end in a newline."""
    assert read_key("K", {"K": "sk-abc\r\n"}) == "sk-abc"


def forms(secret: str) -> dict[str, str]:
    """Return how servers and libraries write a secret."""
    return {
        "as it is": secret,
        "in JSON": json.dumps(secret)[1:-1],
        "in a URL": quote(secret, safe=""),
        "in base64": base64.b64encode(secret.encode()).decode(),
        "as basic authentication": base64.b64encode(f"user:{secret}".encode()).decode(),
        "in hexadecimal": secret.encode().hex(),
        "in a repr": repr(secret),
        "in a header": f"Authorization: Bearer {secret}",
    }


@given(
    st.text(st.characters(codec="utf-8"), min_size=8, max_size=40),
    st.text(max_size=20),
    st.text(max_size=20),
)
def test_no_form_of_a_secret_is_left(secret: str, before: str, after: str) -> None:
    """However it is written, and whatever stands around it, the secret is taken out."""
    redaction.forget()
    redaction.hide(secret)
    for form in forms(secret).values():
        text = redaction.redacted(f"{before}{form}{after}")
        assert secret not in text
        assert "***" in text


@pytest.mark.parametrize("form", forms(SECRET))
@pytest.mark.parametrize("at", [0, 250, 290, 299, 4000])
def test_no_echo_of_a_key_is_kept(form: str, at: int) -> None:
    """A server's echo of the key reaches no row, wherever in its answer it stands."""
    redaction.hide(SECRET)
    echo = forms(SECRET)[form]
    body = ("x" * at + echo + "y" * 300).encode()
    for head in (b"HTTP/1.1 401 Unauthorized\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"):
        exchange = Exchange(b"", 0.0, 9.0, lambda _: None, sent_s=0.0, pieces=[(1.0, head + body)])
        row = RequestRecord(user=1, round=1, intended_start_s=0.0)
        settle(exchange, row, start_s=0.0)
        assert row.error
        for name in ("as it is", "in JSON", "in a URL", "in hexadecimal"):
            text = forms(SECRET)[name]
            assert not [text[n : n + 7] for n in range(len(text) - 6) if text[n : n + 7] in row.error]


def test_a_redirect_that_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Header fields of an answer go through the same place."""
    redaction.hide(SECRET)
    head = f"HTTP/1.1 302 Found\r\nLocation: https://h/?key={quote(SECRET)}\r\n\r\n".encode()
    row = RequestRecord(user=1, round=1, intended_start_s=0.0)
    settle(Exchange(b"", 0.0, 9.0, lambda _: None, sent_s=0.0, pieces=[(1.0, head)]), row, start_s=0.0)
    assert "location: https://h/?key=***" in row.error


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of its own authority."""
    folder = tmp_path_factory.mktemp("ca")
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    argv += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "ca.pem")]
    subprocess.run(argv, check=True, capture_output=True)
    return folder / "ca.pem"


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_private_authorities_are_trusted_in_the_same_way(name: str, authority: Path) -> None:
    """Each variable that names certificates counts for raw sockets as for libraries."""
    environ = {name: str(authority)}
    assert ca_bundle(environ) == str(authority)
    context = tls_context(environ)
    assert isinstance(context, ssl.SSLContext)
    assert "127.0.0.1" in str(context.get_ca_certs())


def test_certificates_that_are_not_there_are_named(tmp_path: Path) -> None:
    """A file that is missing, or holds none, is an error with the variable or the file."""
    with pytest.raises(ConfigError, match=r"SSL_CERT_FILE: .*nowhere\.pem is not there"):
        ca_bundle({"SSL_CERT_FILE": str(tmp_path / "nowhere.pem")})
    (tmp_path / "empty.pem").write_text("none")
    with pytest.raises(ConfigError, match="holds no certificates"):
        tls_context({"REQUESTS_CA_BUNDLE": str(tmp_path / "empty.pem")})
    assert ca_bundle({}) == ""


def test_plain_addresses_need_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that names no file stops nobody who talks to http, as a pair on this machine does."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    assert verification("http://127.0.0.1:8000/metrics") is True
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        verification("https://host/metrics")


@pytest.mark.parametrize(
    ("listens", "taken", "asked"),
    [
        ({"127.0.0.1"}, "127.0.0.1", ["::1", "127.0.0.9", "127.0.0.1"]),
        ({"::1", "127.0.0.1"}, "::1", ["::1"]),
        (set(), "::1", ["::1", "127.0.0.9", "127.0.0.1"]),  # nobody: the first one, whose error is told
    ],
)
def test_all_addresses_of_a_name_are_tried(
    monkeypatch: pytest.MonkeyPatch, listens: set[str], taken: str, asked: list[str]
) -> None:
    """Where nobody listens on the first address of a name, the next one is taken."""
    tried: list[str] = []

    def connect(sock: socket.socket, place: tuple[str, int]) -> None:
        assert 0 < (sock.gettimeout() or 0) < 10
        tried.append(place[0])
        if place[0] not in listens:
            raise ConnectionRefusedError

    places = [("::1", 8000, 0, 0), ("127.0.0.9", 8000), ("127.0.0.1", 8000)]
    found = [(socket.AF_INET6 if len(place) > 2 else socket.AF_INET, 1, 6, "", place) for place in places]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: found)
    monkeypatch.setattr(socket.socket, "connect", connect)
    assert answering("localhost", 8000).place[:2] == (taken, 8000)
    assert tried == asked


def test_one_address_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with one address sees no connection that brings no request."""
    monkeypatch.setattr(socket.socket, "connect", None)
    assert answering("127.0.0.1", 9) == (socket.AF_INET, ("127.0.0.1", 9))


ZONES = [
    ("http://[fe80::1%25eth0]:8000/v1", "http://[fe80::1%25eth0]:8000/v1", "fe80::1%eth0", "[fe80::1]:8000"),
    ("http://[fe80::1%eth0]:8000/v1", "http://[fe80::1%25eth0]:8000/v1", "fe80::1%eth0", "[fe80::1]:8000"),
    ("http://[FE80::A%25Eth0.5]/v1", "http://[fe80::a%25Eth0.5]/v1", "fe80::a%Eth0.5", "[fe80::a]"),
    ("http://[::1]:8000/v1", "http://[::1]:8000/v1", "::1", "[::1]:8000"),
    ("http://Host.example:80/v1?a=%25b", "http://host.example:80/v1?a=%25b", "host.example", "host.example:80"),
]


@pytest.mark.parametrize(("text", "url", "host", "header"), ZONES)
def test_zones_of_link_local_addresses(text: str, url: str, host: str, header: str) -> None:
    """A zone is read however it is written, kept as RFC 6874 has it, resolved behind a `%`, and never sent."""
    found = endpoint(text, where="x").url
    assert found == url
    assert (host_of(urlsplit(found)), host_header(urlsplit(found))) == (host, header)
    assert endpoint(found, where="x").url == url


def _link_local() -> list[str]:
    """Return this machine's link-local addresses with their zones."""
    table = Path("/proc/net/if_inet6")
    lines = table.read_text().splitlines() if table.exists() else []
    fields = [line.split() for line in lines]
    return [f"{ipaddress.IPv6Address(bytes.fromhex(each[0]))}%{each[5]}" for each in fields if each[3] == "20"]


def test_a_link_local_address_is_reached_with_its_zone() -> None:
    """What connects keeps the zone, without which the kernel does not know the interface."""
    if not (there := _link_local()):
        pytest.skip("no interface has a link-local address")
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener:
        listener.bind(socket.getaddrinfo(there[0], 0, type=socket.SOCK_STREAM)[0][4])
        listener.listen()
        line = wire.Wire(there[0], listener.getsockname()[1])
        now, done = time.monotonic(), list[Exchange]()
        line.submit(Exchange(framing.request("h", "/", b""), now, now + 1.0, done.append))
        line.run()
        line.close()
        assert done[0].sent_s is not None
        assert done[0].failed.startswith("timed out")

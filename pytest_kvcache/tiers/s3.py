"""`kind = "s3"`: LMCache keeps KV in CPU RAM and in an S3 bucket of the user or one served for the run."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pytest_kvcache.check import Check
from pytest_kvcache.preflight import fs as checks_of_fs
from pytest_kvcache.preflight import s3 as checks_of_s3
from pytest_kvcache.preflight.kvsize import stored
from pytest_kvcache.serving.objectstore import LOCAL_BUCKET, rclone_server
from pytest_kvcache.serving.offload import Offload, PerServer, Reach, TierPlan, salt_of
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.storage.bucket import Bucket
from pytest_kvcache.storage.objects import BucketAccount, OwnServerAccount
from pytest_kvcache.strict import NonBlank
from pytest_kvcache.tiers.base import TierModel

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_REGION = "us-east-1"


def bare_endpoint(endpoint: str) -> str:
    """Return an endpoint as `http(s)://host[:port]`, without the slash that may end it.

    LMCache takes only host and port in both of its modes: it sends them as `Host` and puts the object's name right
    behind them (`s3_l2_adapter.py`, `s3_connector.py` of 0.5.6). A path or a query would be lost or break the request.

    Raises:
        ValueError: The endpoint has more or less than scheme, host and port.
    """
    if "@" in endpoint:
        raise ValueError("endpoint must not hold credentials; set " + " and ".join(_KEYS))
    form = "write http(s)://host[:port]"
    parts = urlsplit(endpoint)
    if parts.scheme == "s3":
        raise ValueError(f"{endpoint!r} is the URL of a bucket; {form} of the service, and the name as bucket")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"endpoint {endpoint!r} is not allowed; {form}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"endpoint {endpoint!r} has a port that is none; {form}") from None
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"endpoint {endpoint!r} has a port that is none; {form}")
    if ":" in parts.hostname or not re.fullmatch(r"[\w.-]+", parts.hostname):
        raise ValueError(f"endpoint {endpoint!r} has no name before which the bucket's can stand; {form}")
    for what, found in (("path", parts.path.rstrip("/")), ("query", parts.query), ("fragment", parts.fragment)):
        if found:
            bare = f"{parts.scheme}://{parts.netloc}"
            raise ValueError(
                f"endpoint must have no {what}: LMCache takes host and port only; write {bare!r}, and let the service "
                "answer there for the bucket's own host name"
            )
    return f"{parts.scheme}://{parts.netloc}"


class S3Tier(TierModel):
    """The tier with CPU RAM and a bucket.

    Without `endpoint`, `rclone serve s3` is started with random keys on an empty folder. With `endpoint`, the keys come
    from the environment only (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY): never from a file, never on a command line.
    """

    kind: Literal["s3"]
    endpoint: str | None = Field(default=None, description="http(s)://host[:port] of an existing S3 service")
    bucket: str | None = Field(default=None, description="an existing bucket of it")
    region: NonBlank = Field(default=_REGION, description="region that requests are signed for")
    io_threads: int = Field(default=2, ge=1, description="LMCache's s3_num_io_threads")

    @model_validator(mode="after")
    def _check(self) -> S3Tier:
        if (self.endpoint is None) != (self.bucket is None):
            raise ValueError("endpoint and bucket go together; leave both out for a server started by the run")
        return self

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        return None if value is None else bare_endpoint(value)

    @field_validator("bucket")
    @classmethod
    def _check_bucket(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError(f"{value!r} is no name of a bucket: it becomes the first label of a host name")
        return value

    def unavailable(self, ctx: TierContext) -> str | None:
        """Return why the tier cannot run: the run's own server needs rclone, an existing service needs keys."""
        if self.endpoint is None:
            return None if ctx.tool("rclone") else "rclone is not in the engine environment nor on PATH"
        missing = [key for key in _KEYS if not ctx.environ.get(key)]
        return f"{' and '.join(missing)} not set in the environment" if missing else None

    def checks(self, ctx: TierContext) -> list[Check]:
        """Return the checks before a boot."""
        if self.endpoint is None:
            return [
                Check("own server", lambda: checks_of_s3.own_server(ctx.tool("rclone"), ctx.call), blocking=True),
                Check("space", lambda: checks_of_fs.space(ctx.storage_home, stored(ctx.profile)), blocking=True),
            ]
        return checks_of_s3.checks(self._bucket(ctx))

    def plan(self, ctx: TierContext) -> TierPlan:
        """Return a plan with L1 and S3 as L2: all servers use the same bucket."""
        if self.endpoint is None:
            return self._own_server(ctx)
        parts = urlsplit(self.endpoint)
        # LMCache's adapter speaks virtual-hosted style only: the bucket is the first label of the host.
        host = f"{self.bucket}.{parts.netloc}"
        session = ctx.environ.get("AWS_SESSION_TOKEN")
        return TierPlan(
            label=self.label(ctx),
            offload=self._offload(host, tls=parts.scheme == "https"),
            secret_env={k: ctx.environ[k] for k in _KEYS} | ({"AWS_SESSION_TOKEN": session} if session else {}),
            facts={"storage": "s3", "endpoint": self.endpoint, "bucket": str(self.bucket)},
            salt=salt_of(ctx.run_id),
            bucket=self._bucket(ctx),
            storage_account=BucketAccount(self._bucket(ctx), _first_part(ctx.profile.model), salt_of(ctx.run_id)),
        )

    def _bucket(self, ctx: TierContext) -> Bucket:
        names = (*_KEYS, "AWS_SESSION_TOKEN")
        keys = {name: ctx.environ[name] for name in names if ctx.environ.get(name)}
        return Bucket(str(self.endpoint), str(self.bucket), self.region, keys)

    def _own_server(self, ctx: TierContext) -> TierPlan:
        port, metrics_port = ctx.port(), ctx.port()
        folder = ctx.storage_home / f"kvcache-{ctx.run_id}-{self.name}"
        keys = dict(zip(_KEYS, (secrets.token_hex(10), secrets.token_hex(20)), strict=True))
        rclone = str(ctx.tool("rclone") or "rclone")

        def served(reach: Reach | None = None) -> TierPlan:
            server = rclone_server(rclone, folder=folder, port=port, metrics_port=metrics_port, keys=keys, reach=reach)
            where = "on loopback" if reach is None else f"on {reach.machine}, by TLS relays"
            return TierPlan(
                label=self.label(ctx) if reach is None else f"{self.label(ctx)} (by TLS relays)",
                offload=self._offload(f"127.0.0.1:{port}" if reach is None else reach.doors, tls=False),
                storage=(server,),
                folders=(folder, folder / LOCAL_BUCKET),
                secret_env=keys,
                facts={"storage": "s3", "endpoint": f"rclone {where}"},
                storage_account=OwnServerAccount(folder, f"http://127.0.0.1:{metrics_port}/metrics"),
                reached=served,
            )

        return served()

    def _offload(self, host: str | tuple[str, ...], *, tls: bool) -> Offload:
        """Return LMCache's settings for one host and port, or for one that is each server's own."""
        options = {
            "s3_region": self.region,
            "s3_num_io_threads": self.io_threads,
            "s3_prefer_http2": tls,
            "disable_tls": not tls,
        }
        return Offload(
            l2_adapter={"type": "s3", "s3_endpoint": _of_each("", host), **options},
            engine_config={
                "remote_url": _of_each("s3://", host),
                "remote_serde": "naive",
                "extra_config": {**options, "save_chunk_meta": False},
            },
        )


def _of_each(prefix: str, host: str | tuple[str, ...]) -> str | PerServer:
    return f"{prefix}{host}" if isinstance(host, str) else PerServer(prefix, ends=host)


def _first_part(model: str) -> str:
    """Return the beginning of LMCache's keys: a folder's name, or the part of a model's name before the first slash."""
    return Path(model).name if Path(model).is_dir() else model.partition("/")[0]

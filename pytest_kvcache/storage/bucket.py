"""A bucket of the user's: how it is reached, and what a boot leaves there."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pytest_kvcache.errors import RunError

_TIMEOUT_S = 10.0
#: Number of deletes side by side, each of one key: not every S3 service knows the delete of many keys.
_AT_ONCE = 16


@dataclass(frozen=True)
class Bucket:
    """Where and how a bucket is reached.

    Args:
        endpoint: `http(s)://host[:port]`.
        name: Name of the bucket.
        region: Region for the signature of requests.
        keys: Values of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for temporary keys, AWS_SESSION_TOKEN.
    """

    endpoint: str
    name: str
    region: str
    keys: Mapping[str, str] = field(repr=False)

    @property
    def host(self) -> str:
        """Host that LMCache connects to: the bucket's name is its first label."""
        return f"{self.name}.{urlsplit(self.endpoint).hostname}"

    @property
    def port(self) -> int:
        """Port that LMCache connects to."""
        parts = urlsplit(self.endpoint)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.endpoint).scheme == "https"


def client(bucket: Bucket) -> Any:
    """Return a client that addresses the bucket as LMCache does."""
    from botocore.config import Config  # noqa: PLC0415 - slow to import
    from botocore.session import Session  # noqa: PLC0415

    return Session().create_client(
        "s3",
        endpoint_url=bucket.endpoint,
        region_name=bucket.region,
        aws_access_key_id=bucket.keys.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=bucket.keys.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=bucket.keys.get("AWS_SESSION_TOKEN"),
        config=Config(
            s3={"addressing_style": "virtual"},
            # Services other than Amazon's know neither trailing checksums nor their verification.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=_TIMEOUT_S,
            read_timeout=_TIMEOUT_S,
            retries={"total_max_attempts": 1},
        ),
    )


def listing(bucket: Bucket, *, prefix: str, salt: str) -> dict[str, int]:
    """Return the objects of a boot: their sizes (bytes) by name.

    Args:
        bucket: Bucket of the objects.
        prefix: What the objects' names begin with: the model, as far as its first slash.
        salt: What the objects' names end with.

    Raises:
        RunError: The bucket cannot be listed.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - slow to import

    try:
        return _sizes(client(bucket), bucket.name, prefix=prefix, salt=salt)
    except (ClientError, BotoCoreError) as error:
        todo = "let these keys list it"
        raise RunError(f"cannot be listed: {error}", where=f"bucket {bucket.name}", todo=todo) from None


def remove(bucket: Bucket, *, model: str, salt: str) -> str:
    """Remove the objects of a boot whose requests carried `salt`.

    LMCache's keys begin with the model and end with the salt, in both of its modes: `Qwen/Qwen3-8B@…@SALT`, or
    `Qwen_Qwen3-8B@…@run%SALT`.

    Args:
        bucket: Bucket of the objects.
        model: Name of the model, as vLLM was given it.
        salt: Salt of the boot.

    Returns:
        Why some objects may be left, "" where none is.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - slow to import

    s3, prefix = client(bucket), model.partition("/")[0]
    try:
        keys = _sizes(s3, bucket.name, prefix=prefix, salt=salt)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda key: s3.delete_object(Bucket=bucket.name, Key=key), keys))
    except (ClientError, BotoCoreError) as error:
        names = f"begin with {prefix}" + (f" and end in {salt}" if salt else "")
        return f"objects of this run, their names {names}, may be left in the bucket {bucket.name}: {error}"
    return ""


def _sizes(s3: Any, bucket: str, *, prefix: str, salt: str) -> dict[str, int]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = (each for page in pages for each in page.get("Contents", []))
    return {each["Key"]: int(each["Size"]) for each in found if each["Key"].endswith(salt)}

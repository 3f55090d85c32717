"""What buckets say of themselves: those of the run's own S3 server, and those of the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import requests
from prometheus_client.parser import text_string_to_metric_families

from pytest_kvcache.errors import RunError
from pytest_kvcache.storage import bucket as buckets
from pytest_kvcache.storage.account import StorageReading
from pytest_kvcache.storage.bucket import Bucket
from pytest_kvcache.storage.folder import FolderAccount
from pytest_kvcache.storage.requirement import Require

#: Bytes of objects that were put and got: rclone counts what `serve s3` takes and gives as transfers.
_SERVED = "rclone_bytes_transferred_total"
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class OwnServerAccount:
    """What rclone counts, and the folder in which rclone keeps its buckets.

    Args:
        folder: The folder, which was empty when the boot began.
        metrics_url: rclone's Prometheus endpoint (`--metrics-addr`).
    """

    folder: Path
    metrics_url: str
    require: Require = "none"

    @property
    def name(self) -> str:
        """What is read: the listing, and the server's counter."""
        return "bucket listing and the S3 server's own counter of bytes"

    def read(self) -> StorageReading:
        """Return objects and bytes in the bucket, and the bytes that the server moved since its start.

        Raises:
            RunError: The folder cannot be listed, or the server does not answer.
        """
        stored = FolderAccount(self.folder).read()
        return StorageReading(stored.files, stored.bytes, served_bytes=self._served())

    def _served(self) -> float:
        try:
            with requests.Session() as session:
                session.trust_env = False
                response = session.get(self.metrics_url, timeout=_TIMEOUT_S)
                response.raise_for_status()
        except requests.RequestException as error:
            raise RunError(f"its counters cannot be read: {error}", where="S3 server", todo="read its log") from None
        samples = (s for family in text_string_to_metric_families(response.text) for s in family.samples)
        found = next((sample.value for sample in samples if sample.name == _SERVED), None)
        if found is None:
            raise RunError(f"does not count {_SERVED}", where="S3 server", todo="use rclone 1.70 or later")
        return float(found)


@dataclass(frozen=True)
class BucketAccount:
    """Objects of one boot in a bucket of the user's. A listing does not show what was read.

    Args:
        bucket: Bucket of the objects.
        prefix: What the objects' names begin with.
        salt: What the objects' names end with.
    """

    bucket: Bucket
    prefix: str
    salt: str
    require: Require = "none"

    @property
    def name(self) -> str:
        """What is read: the listing only."""
        return "bucket listing, of stores only"

    def read(self) -> StorageReading:
        """Return number and bytes of the boot's objects.

        Raises:
            RunError: The bucket cannot be listed.
        """
        sizes = buckets.listing(self.bucket, prefix=self.prefix, salt=self.salt)
        return StorageReading(len(sizes), sum(sizes.values()))

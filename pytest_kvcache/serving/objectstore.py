"""An S3 server for the run: `rclone serve s3` on loopback, or with TLS for other machines, with random keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.offload import Reach

#: rclone takes the first label of the Host header for the bucket; with the host 127.0.0.1 that is "127".
#: With this name LMCache's virtual-hosted requests find their bucket without a DNS entry.
LOCAL_BUCKET = "127"


def rclone_server(
    rclone: str, *, folder: Path, port: int, metrics_port: int, keys: Mapping[str, str], reach: Reach | None = None
) -> Component:
    """Return the component of an S3 server that keeps its buckets in `folder`.

    Args:
        rclone: Path of the program `rclone`.
        folder: Folder that holds one folder for each bucket, `LOCAL_BUCKET` among them.
        port: Port to listen on, at 127.0.0.1; unused where `reach` says where.
        metrics_port: Port of the Prometheus endpoint, at 127.0.0.1. Counting does not slow reads measurably: 300
            objects of 512 KiB were read at 339 to 356 MB/s with the endpoint and at 332 to 372 without it.
        keys: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY that clients will use.
        reach: How servers on other machines reach it; None where all are on this one. Then the relays say whether it
            answers, and the counters, which stay on loopback, whether it runs.

    rclone reads `--auth-key` from RCLONE_AUTH_KEY too, which keeps the keys out of the process list.
    """
    shown: tuple[str, ...]
    if reach is None:
        address, shown, ready = f"127.0.0.1:{port}", (), f"http://127.0.0.1:{port}/"
    else:
        shown = ("--cert", str(reach.certificate), "--key", str(reach.key), "--min-tls-version", "tls1.3")
        address, ready = reach.address, f"http://127.0.0.1:{metrics_port}/metrics"
    access, secret = keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"]
    return Component(
        name="s3",
        argv=(
            rclone, "serve", "s3", str(folder),
            "--addr", address, *shown,
            "--force-path-style=false",
            "--config", "/dev/null",
            "--vfs-cache-mode", "off",
            "--stats", "0",
            "--metrics-addr", f"127.0.0.1:{metrics_port}",
        ),
        stage="storage",
        # The value is one CSV field: unquoted, rclone would read two keys.
        secret_env={"RCLONE_AUTH_KEY": f'"{access},{secret}"'},
        ready_url=ready,
        ready_any_status=True,
    )  # fmt: skip

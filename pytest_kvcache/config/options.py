"""What the command line and the ini file ask for, as data; `options.py` reads it from pytest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: Longer than a gate's boots take on GPUs, shorter than the limit of a job of most CI services.
DEFAULT_WAIT_S = 1800.0
UpdateMode = Literal["none", "missing", "all"]
#: `never`; only an image that is not there; or always, which finds a tag that has moved.
PullMode = Literal["never", "missing", "always"]


@dataclass(frozen=True)
class Addresses:
    """Where a deployment is, as the command line says it.

    Args:
        base_url: URL of the router, with /v1; "" for that of kvcache.toml.
        server_urls: URLs of its vLLM servers, as `[NAME=]URL`.
        metrics_urls: Prometheus endpoints of its components, as `NAME=URL`.
    """

    base_url: str = ""
    server_urls: tuple[str, ...] = ()
    metrics_urls: tuple[str, ...] = ()

    def by_option(self) -> dict[str, object]:
        """Return the values by the names of their options."""
        return {
            "--kv-base-url": self.base_url,
            "--kv-server-url": self.server_urls,
            "--kv-metrics-url": self.metrics_urls,
        }


@dataclass(frozen=True)
class Options:
    """What was asked for, not yet checked against any file.

    Args:
        rootdir: pytest's.
        tiers: Named with --tier; empty means all.
        profile: Named, or None for the default of this machine.
        engine: Folder of an existing environment, `image:…`, or None.
        config: The kvcache.toml that is read, None where there is none.
        runs: Folder of results.
        baselines: Folder of baselines.
        update: Which baselines to write.
        boots: Most boots of a tier in this session; None for as many as the profile's rules say.
        strict: Whether a test without a decision fails.
        against: An engine environment, `image:…`, or `git:REVISION` of the configuration, to compare with in place of
            baselines.
        image_mounts: What containers of images get from this machine, as `SOURCE[:TARGET][:ro|rw]`.
        pull: Whether an image is fetched from its registry.
        allow_suspect: Whether boots that had other work beside them may become baselines.
        tier_option: How the option that names tiers is spelled: another plugin may have taken `--tier`.
        update_option: How the option that stores baselines anew is spelled, for the same reason.
        load_nodes: Addresses (HOST:PORT) of the nodes that send the load; none where this machine does.
        wait_s: For how long another session that measures on the same GPUs or processors is waited for (s).
        launcher: What boots the servers; None for what the profile says.
        addresses: Of a deployment that stands.
    """

    rootdir: Path
    tiers: tuple[str, ...]
    profile: str | None
    engine: str | None
    config: Path | None
    runs: Path
    baselines: Path
    update: UpdateMode
    boots: int | None
    strict: bool
    against: str | None
    image_mounts: tuple[str, ...]
    pull: PullMode = "never"
    allow_suspect: bool = False
    tier_option: str = "--tier"
    update_option: str = "--update-baselines"
    wait_s: float = DEFAULT_WAIT_S
    launcher: str | None = None
    addresses: Addresses = Addresses()
    load_nodes: tuple[str, ...] = ()

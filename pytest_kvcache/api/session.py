"""Boots and sessions as hooks get them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvcache.api.result import Result


@dataclass(frozen=True)
class PairBoot:
    """A pair that was booted, or could not be.

    Args:
        tier: Name of the tier.
        profile: Name of the profile.
        side: `A` or `B` under `--kv-against`, else "".
        logs: Folder of its components' output.
        boot_s: From the first start to the last readiness (s); None where it did not start.
        base_url: OpenAI endpoint of the pair, with /v1; "" where it did not start.
        metrics_urls: Prometheus endpoint of each vLLM and LMCache by component.
        versions: Of what was booted, by distribution name.
        error: Why it did not start, "" where it did.
    """

    tier: str
    profile: str
    side: str
    logs: Path
    boot_s: float | None
    base_url: str
    metrics_urls: Mapping[str, str] = field(repr=False)
    versions: Mapping[str, str] = field(repr=False)
    error: str

    @property
    def name(self) -> str:
        """Name of the boot: that of its folder (`boot-1`; `pair` for that of `vllm_pair`)."""
        return self.logs.parent.name


@dataclass(frozen=True)
class Failure:
    """What could not be measured.

    Args:
        tier: Name of the tier.
        context_tokens: Length of the user context; None where something cut the whole tier short.
        error: Why, in words for people.
    """

    tier: str
    context_tokens: int | None
    error: str


@dataclass(frozen=True)
class SessionResult:
    """All that a session measured.

    Args:
        run_id: Names the session: that of its folder.
        folder: Of all its results and logs.
        profile: Name of the profile.
        results: What was measured, in the order in which it was; invalid runs are among them.
        failures: What could not be measured.
        baselines: The baseline files that were written.
        engine_minutes: For which pairs ran.
        interrupted: Whether the session ended before its time (Ctrl-C, SIGTERM, `-x`, a broken test run).
    """

    run_id: str
    folder: Path
    profile: str
    results: tuple[Result, ...]
    failures: tuple[Failure, ...]
    baselines: tuple[Path, ...]
    engine_minutes: float
    interrupted: bool

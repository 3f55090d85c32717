"""The objects that describe boots and sessions to hooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvcache.api.result import Result


@dataclass(frozen=True)
class PairBoot:
    """A pair of servers that was booted, or that could not be booted.

    Args:
        tier: Name of the tier.
        profile: Name of the profile.
        side: `A` or `B` under `--kv-against`, else "".
        logs: Folder of the components' output.
        boot_s: Time from the start of the first component until the last one was ready (s); None if the pair did not
            start.
        base_url: OpenAI endpoint of the pair, with /v1; "" if the pair did not start.
        metrics_urls: Prometheus endpoint of each vLLM and LMCache by component.
        versions: Versions of the booted software, by distribution name.
        error: Why the pair did not start, "" if it did.
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
        """Name of the boot, which is that of its folder (`boot-1`; `pair` for the boot of `vllm_pair`)."""
        return self.logs.parent.name


@dataclass(frozen=True)
class Failure:
    """A tier, or a tier at one context length, that could not be measured.

    Args:
        tier: Name of the tier.
        context_tokens: Length of the user context (tokens); None where something cut the whole tier short.
        error: The reason, in words for people.
    """

    tier: str
    context_tokens: int | None
    error: str


@dataclass(frozen=True)
class SessionResult:
    """All that a session measured.

    Args:
        run_id: Name of the session, which is that of its folder.
        folder: Folder of all results and logs of the session.
        profile: Name of the profile.
        results: Each measured tier and context, invalid ones too, in the order in which they were measured.
        failures: Each tier or context that could not be measured.
        baselines: The baseline files that were written.
        engine_minutes: Minutes for which pairs ran.
        interrupted: Whether the session ended early (Ctrl-C, SIGTERM, `-x`, a broken test run).
    """

    run_id: str
    folder: Path
    profile: str
    results: tuple[Result, ...]
    failures: tuple[Failure, ...]
    baselines: tuple[Path, ...]
    engine_minutes: float
    interrupted: bool

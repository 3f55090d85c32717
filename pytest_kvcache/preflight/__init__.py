"""What is looked at before any boot, and by `pytest-kvcache doctor`: machine, engine, and each tier's storage."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_kvcache.check import Check, CheckResult, Finding, run
from pytest_kvcache.serving.tier import CheckedTier, Tier, TierContext

__all__ = ["Check", "CheckResult", "Finding", "blocking", "of_tier", "run", "stopping"]

#: A boot waits for this, and no longer.
_BLOCKING_LIMIT_S = 30.0


def of_tier(tier: Tier, ctx: TierContext) -> list[CheckResult]:
    """Return what all checks of a tier find; where it cannot run, that is the only finding.

    Args:
        tier: To look at.
        ctx: As for a plan; the tier's probes write below its storage and remove what they wrote.
    """
    subject = f"tier {tier.name}"
    available = run(subject, Check("can run", lambda: _available(tier, ctx)))
    if available.finding.status == "fail":
        return [available]
    return [available, *(run(subject, check) for check in _checks(tier, ctx))]


def blocking(tier: Tier, ctx: TierContext) -> list[str]:
    """Return why a pair should not be booted for a tier that says it is available; empty where nothing speaks against.

    Only checks that are cheap (seconds) and sure are carried out.
    """
    return stopping(tier.name, _checks(tier, ctx))


def stopping(subject: str, checks: Sequence[Check]) -> list[str]:
    """Return what those of `checks` find that keep a pair from being booted, a line each.

    Args:
        subject: What they look at.
        checks: Those that are not blocking are not carried out.
    """
    results = [run(subject, check, limit_s=_BLOCKING_LIMIT_S) for check in checks if check.blocking]
    return [
        f"{r.name}: {r.finding.found}" + (f"; {r.finding.todo}" if r.finding.todo else "")
        for r in results
        if r.finding.status == "fail"
    ]


def _checks(tier: Tier, ctx: TierContext) -> Sequence[Check]:
    return tier.checks(ctx) if isinstance(tier, CheckedTier) else ()


def _available(tier: Tier, ctx: TierContext) -> Finding:
    reason = tier.unavailable(ctx)
    return Finding("pass", f"as {tier.label(ctx)}") if reason is None else Finding("fail", reason)

"""Checks before any boot and of `pytest-kvcache doctor`: of the machine, the engine, and each tier's storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from pytest_kvcache.check import Check, CheckResult, Finding, run

if TYPE_CHECKING:
    # Not imported at run time: checks of a folder are carried out on other machines too, where a Python that imports
    # all of the configuration takes longer than the check.
    from pytest_kvcache.serving.tier import CheckedTier, Tier, TierContext

__all__ = ["Check", "CheckResult", "Finding", "blocking", "of_tier", "run", "stopping"]

#: A boot waits this long for a blocking check, and no longer.
_BLOCKING_LIMIT_S = 30.0


def of_tier(tier: Tier, ctx: TierContext) -> list[CheckResult]:
    """Return the results of all checks of a tier; where the tier cannot run, this is the only result.

    Args:
        tier: The tier to check.
        ctx: Context as for a plan; checks write below the tier's storage and remove what they wrote.
    """
    subject = f"tier {tier.name}"
    available = run(subject, Check("can run", lambda: _available(tier, ctx)))
    if available.finding.status == "fail":
        return [available]
    return [available, *(run(subject, check) for check in _checks(tier, ctx))]


def blocking(tier: Tier, ctx: TierContext) -> list[str]:
    """Return why a pair should not be booted for a tier that says it is available; empty where it may be booted.

    Only checks that are cheap (seconds) and sure are carried out.
    """
    return stopping(tier.name, _checks(tier, ctx))


def stopping(subject: str, checks: Sequence[Check]) -> list[str]:
    """Return the failures of the blocking ones among `checks`, which keep a pair from being booted, a line each.

    Args:
        subject: Name of what the checks look at.
        checks: All checks; only the blocking ones are carried out.
    """
    results = [run(subject, check, limit_s=_BLOCKING_LIMIT_S) for check in checks if check.blocking]
    return [
        f"{r.name}: {r.finding.found}" + (f"; {r.finding.todo}" if r.finding.todo else "")
        for r in results
        if r.finding.status == "fail"
    ]


def _checks(tier: Tier, ctx: TierContext) -> Sequence[Check]:
    return cast("CheckedTier", tier).checks(ctx) if hasattr(tier, "checks") else ()


def _available(tier: Tier, ctx: TierContext) -> Finding:
    reason = tier.unavailable(ctx)
    return Finding("pass", f"as {tier.label(ctx)}") if reason is None else Finding("fail", reason)

"""How checks are carried out, and which of them keep a pair from being booted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_kvcache import preflight
from pytest_kvcache.preflight import Check, Finding
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.tiers.base import TierModel
from pytest_kvcache.tiers.cpu import CpuTier
from tests.unit.test_tiers import context


class Odd(TierModel):
    """A tier of a third party with checks of its own."""

    missing: str | None = None

    def unavailable(self, ctx: TierContext) -> str | None:  # noqa: ARG002 - part of the protocol
        """What it was told to say."""
        return self.missing

    def plan(self, ctx: TierContext) -> TierPlan:  # noqa: ARG002 - part of the protocol
        """Nothing."""
        return TierPlan(label="odd")

    def checks(self, ctx: TierContext) -> Sequence[Check]:  # noqa: ARG002 - part of the protocol
        """One of each kind."""
        return [
            Check("slow", lambda: Finding("fail", "not asked before a boot")),
            Check("sure", lambda: Finding("fail", "broken", "mend it"), blocking=True),
            Check("well", lambda: Finding("warn", "so so"), blocking=True),
        ]


def test_only_sure_failures_block(tmp_path: Path) -> None:
    """Blocking checks alone are carried out before a boot, and only a failure speaks against it."""
    assert preflight.blocking(Odd(name="odd"), context(tmp_path)) == ["sure: broken; mend it"]
    assert preflight.blocking(CpuTier(name="cpu"), context(tmp_path)) == []


def test_a_tier_that_cannot_run_is_asked_nothing_more(tmp_path: Path) -> None:
    """Its reason is the only finding; one that can run has all of its checks."""
    (only,) = preflight.of_tier(Odd(name="odd", missing="no cable"), context(tmp_path))
    assert (only.subject, only.name, only.finding) == ("tier odd", "can run", Finding("fail", "no cable"))
    names = [r.name for r in preflight.of_tier(Odd(name="odd"), context(tmp_path))]
    assert names == ["can run", "slow", "sure", "well"]


def test_a_look_that_hangs_is_given_up() -> None:
    """A dead mount does not hold the whole command."""
    never = threading.Event()

    def hang() -> Finding:
        never.wait()
        return Finding("pass", "at last")

    found = preflight.run("x", Check("hang", hang), limit_s=0.05).finding
    never.set()
    assert (found.status, "no answer" in found.found) == ("fail", True)


def test_errors_of_the_system_are_findings() -> None:
    """An OSError is what was found; any other exception is a fault of ours and is not hidden."""

    def refuse() -> Finding:
        raise PermissionError(13, "Permission denied", "/x")

    def fault() -> Finding:
        raise KeyError("x")

    assert "Permission denied" in preflight.run("x", Check("a", refuse)).finding.found
    with pytest.raises(KeyError):
        preflight.run("x", Check("b", fault))

"""The probes between the start of a pair and each of its loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.probes.client import PairClient
from pytest_kvcache.probes.judge import ProbeRules
from pytest_kvcache.probes.probe import Probed, Probes
from pytest_kvcache.probes.standing import StandingClient
from pytest_kvcache.runs.files import write_json
from pytest_kvcache.serving.pair import ServingPair

#: A load that no verdict may rest on runs this long at most: its counters tell where the KV went wrong.
FAULTY_LOAD_S = 60.0


class BootProbes:
    """The probes of one boot: before its first load all of them, before each further one the resets.

    Args:
        arm: What is served.
        pair: Freshly booted.
        facts: File for what was found.
        salt: Makes the sentinels new to the caches of a deployment, which are not emptied; "" for a booted pair.
    """

    def __init__(self, arm: Arm, pair: ServingPair, facts: Path, *, salt: str = "") -> None:
        self._pair, self._facts = pair, facts
        self._found: Probed | None = None
        profile, plan = arm.profile, pair.plan
        common: dict[str, Any] = {
            "server_urls": plan.server_urls,
            "metrics_urls": plan.metrics_urls,
            "model": plan.model,
            "chunk_tokens": profile.chunk_tokens,
            "extra_body": plan.extra_body,
            "control": plan.control,
        }
        standing = plan.standing
        client = (
            PairClient(**common, authorization=f"Bearer {plan.api_key}" if plan.api_key else "")
            if standing is None
            else StandingClient(**common, authorization=standing.authorization, salt=salt)
        )
        rules = ProbeRules(
            plan.tier.claim,
            chunk_tokens=profile.chunk_tokens,
            tolerance=profile.rules.logprob_tolerance,
        )
        self._why_not = "probes = false" if not profile.rules.probes else ""
        if standing is not None and not plan.server_urls:
            self._why_not = "the deployment's servers are not named, and each must be asked for itself"
        folders = plan.tier.folders if standing is None else ()
        self._probes = None if self._why_not else Probes(client, rules, folders, standing=standing is not None)

    def probe(self) -> Probed:
        """Return what speaks against a load that is sent now.

        Raises:
            BootError: A component died under the probes.
        """
        if self._probes is None:
            return Probed(unchecked=(f"cold start, cross-instance hits and integrity: {self._why_not}",))
        if self._found is None:
            self._found = self._probes.boot()
        else:
            self._found = self._found.with_more(self._probes.between())
        write_json(self._facts, self._found.facts())
        self._pair.check_alive()
        return self._found


def shortened_if_faulty(plan: LoadPlan, probed: Probed) -> LoadPlan:
    """Return the load that is worth its time: a short one where probes have found the run invalid already."""
    if not probed.faults or plan.workload.duration_s <= FAULTY_LOAD_S:
        return plan
    workload = plan.workload.model_copy(update={"duration_s": FAULTY_LOAD_S})
    return plan.model_copy(update={"workload": workload})

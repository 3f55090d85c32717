"""The balancer of a session's pairs: what is compared, what a run is held against, and what it costs itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.errors import BootError, RunError
from pytest_kvcache.probes import balancer_latency
from pytest_kvcache.proof.routing import Routing
from pytest_kvcache.serving.balancers.templates import digest
from pytest_kvcache.serving.balancers.version import version_of
from pytest_kvcache.serving.pair import ServingPair
from pytest_kvcache.serving.plan import ServingPlan

if TYPE_CHECKING:
    from pytest_kvcache.campaign.state import PerfState


def keys_of(settings: Balancer, engine: BaseEngine) -> dict[str, str]:
    """Return the comparability keys of a balancer: kind and policy, version, and a template of the user's own.

    Args:
        settings: The profile's balancer.
        engine: The engine, which may have the balancer's program.
    """
    found = {"balancer": settings.label, "balancer_version": version_of(settings, engine)}
    more = [*settings.args, *filter(None, [digest(settings)])]
    return found | ({"balancer_settings": " ".join(more)} if more else {})


def routing_of(plan: ServingPlan, load: Mapping[str, Any]) -> Routing:
    """Return the balancer of a load, as the proof needs it.

    Args:
        plan: Of the pair.
        load: What the load process says of itself.
    """
    return Routing(
        label=plan.balancer.label,
        promises=plan.balancer.promises,
        servers=tuple(plan.server_urls),
        by_client=bool(plan.turn_urls),
        primed_on=tuple(load.get("primed_on", ())),
    )


def cost(arm: Arm, state: PerfState, pair: ServingPair) -> dict[str, Any]:
    """Return the facts of the balancer for `run.json`; its latency is measured once a session for each version.

    Args:
        arm: What the pair serves.
        state: The session's, which keeps what was measured.
        pair: A running one, whose probes are over.

    Raises:
        BootError: A balancer that runs already does not lead to the servers of the pair.
    """
    settings, standing = pair.plan.balancer, pair.plan.standing
    facts: dict[str, Any] = {"kind": settings.kind, "policy": settings.policy, "promises": settings.promises}
    facts["version"] = version_of(settings, arm.engine)
    if pair.plan.turn_urls or (standing is not None and not pair.plan.server_urls):
        return facts | {"latency": None}
    key = f"{settings.label} {facts['version']}".rstrip()
    if key not in state.balancers:
        try:
            found = balancer_latency.measure(
                pair.plan.base_url,
                pair.plan.server_urls,
                model=pair.plan.model,
                extra_body=pair.plan.extra_body,
                api_key=pair.plan.api_key,
                seen_s=balancer_latency.SEEN_S if settings.kind == "url" and standing is None else 0.0,
            )
        except RunError as error:
            pair.check_alive()
            if settings.kind == "url" and standing is None:
                raise BootError(f"the balancer {error.what}", where=error.where, todo=error.todo) from None
            state.say(f"the latency of the balancer was not measured: {error.what}")
            return facts | {"latency": None, "unmeasured": error.what}
        state.balancers[key] = found
        state.say(f"balancer {key}: {found.line}")
    return facts | {"latency": state.balancers[key].facts()}

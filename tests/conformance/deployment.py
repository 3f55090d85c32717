"""The launcher `attach` in the suite: a pair that the launcher `process` has booted stands for somebody's deployment.

What a launcher cannot have that starts nothing is shown by what it does when it is asked for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pytest

from pytest_kvcache.campaign.deployments import authorization_of
from pytest_kvcache.config.attach import Attach
from pytest_kvcache.deployment import standing as deployments
from pytest_kvcache.engine.attached import AttachedEngine
from pytest_kvcache.errors import BootError
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.telemetry import counters
from pytest_kvcache.telemetry.prometheus import scrape_all
from tests.conformance.launchers import SECRET, WHILE_UP, Boot, Case, Check, booted, boots, end_by_force

_KEY = "KVC_CONFORMANCE_KEY"
_FILE = "of-the-deployment"


@dataclass(frozen=True)
class AttachedCase(Case):
    """The launcher `attach` with a deployment, whose storage is its own."""

    def tier(self) -> TierPlan:
        """Return the plan of a tier of which only the name is known here."""
        return TierPlan("pnfs (attached: held)")


@contextlib.contextmanager
def attached(deployment: Boot) -> Iterator[Boot]:
    """Attach to a deployment, and leave it."""
    plan = deployment.pair.plan
    settings = Attach(
        tier="pnfs",
        base_url=plan.base_url,
        servers=plan.server_urls,
        metrics=plan.metrics_urls,
        deployment="held",
        api_key_env=_KEY,
    )
    key = authorization_of(settings, {_KEY: SECRET})
    engine = AttachedEngine(deployments.find(settings, lmcache_inside=False, authorization=key))
    case = deployment.case
    with booted(AttachedCase("attach", engine, case.profile, case.home, case.folder, case.boot_s)) as boot:
        yield boot


def while_attached(deployment: Boot) -> Mapping[str, Check]:
    """Return the checks of a deployment that is attached to; the last one kills one of its servers."""
    own = {"logs": has_no_logs, "restart one": restarts_nothing, "kill": tells_a_kill_by_counters}
    return {**WHILE_UP, **{name: partial(check, deployment) for name, check in own.items()}}


def has_no_logs(deployment: Boot, boot: Boot) -> str:
    """Logs of the deployment's servers stay where they are: here is none, and nothing passes for one."""
    assert boot.handles == []
    assert list(boot.run.folder.rglob("*.log")) == []
    assert all(handle.log.exists() for handle in deployment.handles)
    return "not its own: the deployment keeps its logs, and here is none"


def restarts_nothing(deployment: Boot, boot: Boot) -> str:
    """A restart is refused, and the server goes on."""
    handle = deployment.handle("vllm-0")
    with pytest.raises(BootError) as refused:
        boot.launcher.restart(handle, boot.logs)
    assert handle.exit_code() is None
    return f"not its own: refuses ({refused.value.what})"


def tells_a_kill_by_counters(deployment: Boot, boot: Boot) -> str:
    """A server of the deployment that was killed is named by the look at the counters after a load."""
    urls = boot.pair.plan.metrics_urls
    before = scrape_all(urls)
    assert end_by_force(deployment, deployment.handle("vllm-1"))
    (fault,) = counters.faults(before, scrape_all(urls))
    assert fault.startswith("vllm-1: ")
    return f"holds, once the load is over: {fault}"


def is_left_alone(deployment: Boot, boot: Boot) -> None:
    """After the end nothing of the run is there but its folder, and the deployment answers as before."""
    assert boot.traces.left() == []
    deployment.pair.check_alive()
    boots(deployment)


def keeps_what_is_stored(deployment: Boot) -> str:
    """Storage is not emptied: what the deployment has stored is there after a run has attached and left."""
    (folder,) = deployment.pair.plan.tier.folders
    kept = folder / _FILE
    kept.write_text("stored before")
    with attached(deployment):
        assert kept.exists()
    assert kept.read_text() == "stored before"
    kept.unlink()
    return "not its own: what the deployment has stored stays"

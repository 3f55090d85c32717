"""A real pair on two of three machines, with the load on the third: vLLM's CPU build and LMCache, on a shared tier."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ray.conftest import EXAMPLE, Project
from tests.ray.machines import NOTHING, Machines
from tests.ray.test_cluster import wait_nothing

pytestmark = pytest.mark.engine


@dataclass(frozen=True)
class Real:
    """What all of these sessions share.

    Args:
        cluster: The machines.
        engine: A real engine, which all machines see.
        folder: Of the project.
        models: Folder of the models that were made on this machine.
    """

    cluster: Machines
    engine: Path
    folder: Path
    models: Path

    def project(self, profile: str, *, ray: str = "", more: str = "") -> Project:
        """Return a project on the cluster, with more keys of the cluster's table and more tables."""
        for machine in self.cluster.all:
            (machine.home / "models").unlink(missing_ok=True)
            (machine.home / "models").symlink_to(self.models)
        (self.folder / "test_multi_round_qa.py").write_text(EXAMPLE.read_text())
        (self.folder / "pyproject.toml").write_text(
            '[tool.pytest.ini_options]\naddopts = ["--strict-markers", "--strict-config"]\n'
            f'kv_engine = "{self.engine}"\nkv_profile = "{profile}"\nkv_launcher = "ray"\n'
        )
        (self.folder / "kvcache.toml").write_text(
            f"[profiles.{profile}]\nboot_timeout_s = 900\n"
            # The machines of the test are one: what the nodes do is other work to the one that looks for it.
            f"[profiles.{profile}.rules]\nother_work = 9\n"
            f"[profiles.{profile}.workload]\ncontext_tokens = [1000]\nsend_late_budget_s = 5\nresidual_budget_s = 9\n"
            f'[profiles.{profile}.ray]\naddress = "{self.cluster.address}"\ncpus_per_server = 0.5\n'
            f"resources = {{pnfs = 1}}\n{ray}{more}"
        )
        return Project(self.folder, self.cluster, self.engine)

    def nothing_is_left(self) -> None:
        """Assert that no machine has anything of a run."""
        for machine in self.cluster.all:
            (machine.home / "models").unlink()
            assert wait_nothing(machine) == NOTHING, machine.name


@pytest.fixture
def real(cluster: Machines, real_engine: Path, tmp_path: Path) -> Real:
    """A cluster that sees a real engine and the models of this machine."""
    from tests.conftest import _HOME

    return Real(cluster, real_engine, tmp_path, _HOME / "models")


@pytest.mark.parametrize("profile", ["cpu-tiny", "cpu-tiny-mp"])
def test_a_real_pair_over_three_machines(real: Real, profile: str) -> None:
    """Servers on two nodes answer from what the other one stored; the ledger proves it, and nothing is left."""
    project, cluster = real.project(profile), real.cluster
    session = project.run("--tier", "pnfs", "--record-baselines", "--kv-boots", "1")
    assert session.process.returncode == 0, session.out
    (path,) = project.result("run.json")
    facts = json.loads(path.read_text())
    assert {facts["launcher"][f"vllm-{i}"].split()[0] for i in (0, 1)} == {"kv-1", "kv-2"}
    assert facts["faults"] == []
    assert facts["proof"]["storage"]["claimed_bytes"]["stored"] > 0
    assert facts["proof"]["storage"]["storage_account"].endswith(
        "read on " + ", ".join(f"{machine.name} ({machine.address})" for machine in cluster.all[:-1])
    )
    assert facts["proof"]["figures"]["share_l2"] > 0
    (probes,) = project.result("probes.json")
    assert json.loads(probes.read_text())
    real.nothing_is_left()


def test_a_real_load_from_a_node(real: Real) -> None:
    """A node sends to a real pair on two others, through HAProxy; its clock is known well enough."""
    ray, balancer = "load_nodes = 1\ncpus_per_load_node = 0.5\n", 'kind = "haproxy"\n'
    project = real.project("cpu-tiny", ray=ray, more=f"[profiles.cpu-tiny.balancer]\n{balancer}")
    session = project.run("--tier", "pnfs", "--record-baselines", "--kv-boots", "1")
    assert session.process.returncode == 0, session.out
    (path,) = project.result("run.json")
    facts = json.loads(path.read_text())
    assert facts["faults"] == []
    assert {facts["launcher"][f"vllm-{i}"].split()[0] for i in (0, 1)} == {"kv-1", "kv-2"}
    (node,) = facts["load"]["nodes"]
    assert node["host"] == "kv-3"
    assert node["rows"] > 0
    clock, budget_s = node["clock"], facts["settings"]["workload"]["clock_error_budget_s"]
    assert abs(clock["offset_before_s"]) < 1e-4
    assert clock["offset_before_uncertainty_s"] < budget_s
    assert clock["offset_after_uncertainty_s"] < budget_s
    assert clock["error_s"] < budget_s
    assert facts["comparability"]["load.nodes"] == "1"
    assert facts["proof"]["figures"]["share_l2"] > 0
    real.nothing_is_left()

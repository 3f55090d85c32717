"""A real pair on two of three machines, with the load on the third: vLLM's CPU build and LMCache, on a shared tier."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray.conftest import EXAMPLE, Project
from tests.ray.machines import NOTHING, Machines
from tests.ray.test_cluster import wait_nothing

pytestmark = pytest.mark.engine


@pytest.fixture
def models(cluster: Machines) -> Iterator[None]:
    """The models that were made on this machine, at each of the machines."""
    from tests.conftest import _HOME

    links = [machine.home / "models" for machine in cluster.all]
    for link in links:
        link.unlink(missing_ok=True)
        link.symlink_to(_HOME / "models")
    yield
    for link in links:
        link.unlink()


def real_project(path: Path, cluster: Machines, engine: Path, profile: str, more: str = "") -> Project:
    """Return a project whose servers are real, with `more` in its kvcache.toml."""
    (path / "test_multi_round_qa.py").write_text(EXAMPLE.read_text())
    (path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = ["--strict-markers", "--strict-config"]\n'
        f'kv_engine = "{engine}"\nkv_profile = "{profile}"\nkv_launcher = "ray"\n'
    )
    (path / "kvcache.toml").write_text(
        f"[profiles.{profile}]\nboot_timeout_s = 900\n"
        # The machines of the test are one, on which whatever runs beside the test is other work.
        f"[profiles.{profile}.rules]\nother_work = 9\n"
        f"[profiles.{profile}.workload]\ncontext_tokens = [1000]\nsend_late_budget_s = 5\nresidual_budget_s = 9\n"
        f'[profiles.{profile}.ray]\naddress = "{cluster.address}"\ncpus_per_server = 0.5\nresources = {{pnfs = 1}}\n'
        + more
    )
    return Project(path, cluster, engine)


def recorded(project: Project, *tiers: str) -> dict[str, dict[str, Any]]:
    """Run a session of one boot of each tier, which must pass and leave nothing; return the facts of each run."""
    chosen = [word for tier in tiers for word in ("--tier", tier)]
    session = project.run(*chosen, "--record-baselines", "--kv-boots", "1")
    assert session.process.returncode == 0, session.out
    found = {
        path.relative_to(project.path).parts[3]: json.loads(path.read_text()) for path in project.result("run.json")
    }
    assert set(found) == set(tiers)
    for facts in found.values():
        assert {facts["launcher"][f"vllm-{i}"].split()[0] for i in (0, 1)} == {"kv-1", "kv-2"}
        assert facts["faults"] == []
    assert all(json.loads(path.read_text()) for path in project.result("probes.json"))
    for machine in project.cluster.all:
        assert wait_nothing(machine) == NOTHING, machine.name
    return found


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("profile", ["cpu-tiny", "cpu-tiny-mp"])
def test_a_real_pair_over_three_machines(cluster: Machines, real_engine: Path, tmp_path: Path, profile: str) -> None:
    """Servers on two nodes answer from what the other one stored, on tiers that are shared; the ledger proves it."""
    found = recorded(real_project(tmp_path, cluster, real_engine, profile), "cpu", "s3", "pnfs")
    for shared in ("s3", "pnfs"):
        assert found[shared]["proof"]["storage"]["claimed_bytes"]["stored"] > 0
        assert found[shared]["proof"]["figures"]["share_l2"] > 0
    accounts = {tier: facts["proof"]["storage"]["storage_account"] for tier, facts in found.items() if tier != "cpu"}
    nodes = ", ".join(f"{machine.name} ({machine.address})" for machine in cluster.all[:-1])
    assert accounts["pnfs"].endswith(f"read on {nodes}")
    assert accounts["s3"] == "bucket listing and the S3 server's own counter of bytes"
    where = f"rclone on {cluster.head.name} ({cluster.head.address}), by TLS relays"
    assert found["s3"]["comparability"]["storage.endpoint"] == where


@pytest.mark.usefixtures("models")
def test_kv_aware_over_machines(cluster: Machines, real_engine: Path, tmp_path: Path) -> None:
    """The real router hears of the blocks of vLLM servers on other machines, and takes requests by them."""
    policy = '[profiles.cpu-tiny.balancer]\npolicy = "kv_aware"\n'
    found = recorded(real_project(tmp_path, cluster, real_engine, "cpu-tiny", policy), "cpu")
    assert found["cpu"]["comparability"]["serving.balancer"].startswith("vllm-router kv_aware")
    assert found["cpu"]["proof"]["figures"]["share_device"] > 0


@pytest.mark.usefixtures("models")
def test_a_real_load_from_a_node(cluster: Machines, real_engine: Path, tmp_path: Path) -> None:
    """A node sends to a real pair on two others, through HAProxy; its clock is known well enough."""
    more = 'load_nodes = 1\ncpus_per_load_node = 0.5\n[profiles.cpu-tiny.balancer]\nkind = "haproxy"\n'
    facts = recorded(real_project(tmp_path, cluster, real_engine, "cpu-tiny", more), "pnfs")["pnfs"]
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

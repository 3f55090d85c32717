"""A real pair on two of three machines, with the load on the third: vLLM's CPU build and LMCache, on a shared tier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ray.conftest import EXAMPLE, Project
from tests.ray.machines import NOTHING, Machines
from tests.ray.test_cluster import wait_nothing

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("profile", ["cpu-tiny", "cpu-tiny-mp"])
def test_a_real_pair_over_three_machines(
    cluster: Machines, real_engine: Path, tmp_path: Path, profile: str, models: Path
) -> None:
    """Servers on two nodes answer from what the other one stored; the ledger proves it, and nothing is left."""
    for machine in cluster.all:
        (machine.home / "models").unlink(missing_ok=True)
        (machine.home / "models").symlink_to(models)
    (tmp_path / "test_multi_round_qa.py").write_text(EXAMPLE.read_text())
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = ["--strict-markers", "--strict-config"]\n'
        f'kv_engine = "{real_engine}"\nkv_profile = "{profile}"\nkv_launcher = "ray"\n'
    )
    (tmp_path / "kvcache.toml").write_text(
        f"[profiles.{profile}]\nboot_timeout_s = 900\n"
        # The machines of the test are one, on which whatever runs beside the test is other work.
        f"[profiles.{profile}.rules]\nother_work = 9\n"
        f"[profiles.{profile}.workload]\ncontext_tokens = [1000]\nsend_late_budget_s = 5\nresidual_budget_s = 9\n"
        f'[profiles.{profile}.ray]\naddress = "{cluster.address}"\ncpus_per_server = 0.5\nresources = {{pnfs = 1}}\n'
    )
    project = Project(tmp_path, cluster, real_engine)
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
    for machine in cluster.all:
        (machine.home / "models").unlink()
        assert wait_nothing(machine) == NOTHING, machine.name


@pytest.fixture
def models() -> Path:
    """Folder of the models that were made on this machine."""
    from tests.conftest import _HOME

    return _HOME / "models"

"""Sessions whose load a node of the cluster sends: what is where, what listens, what is seen, and a node that ends."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator

import pandas as pd
import psutil
import pytest

from tests.ray.conftest import Project, Session
from tests.ray.machines import NOTHING, Machine, Machines
from tests.ray.test_cluster import LONG, PLANTED, _status, under_load, wait_nothing

#: What the command line of each process of a run has in it, beside those of Ray and of pytest.
OURS = ("programs.py", "haproxy", "load-node", "load.worker")


@pytest.fixture
def sending(project: Project) -> Project:
    """A project whose load is sent by a node, through HAProxy."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    project.configure(
        ray="resources = {pnfs = 1}\nload_nodes = 1\ncpus_per_load_node = 0.5\n",
        more='\n[profiles.stub.balancer]\nkind = "haproxy"\n',
        **LONG,
    )
    path, workload = project.path / "kvcache.toml", "[profiles.stub.workload]\n"
    # Machines of tests are busy.
    path.write_text(path.read_text().replace(workload, f"{workload}clock_error_budget_s = 0.05\n"))
    return project


def of_the_run(machine: Machine) -> Iterator[psutil.Process]:
    """Yield the processes on a machine that belong to a run."""
    for process in machine.processes():
        with contextlib.suppress(psutil.Error):
            if any(name in word for word in process.cmdline() for name in OURS):
                yield process


def keys_of(session: Session, machine: Machine) -> set[str]:
    """Return the keys of a boot, as its load node has them."""
    session.wait_for(lambda: any("load-node" in each.cmdline() for each in of_the_run(machine)))
    (node, *_) = [each for each in of_the_run(machine) if "load-node" in each.cmdline()]
    return {node.environ()["KVCACHE_LOAD_KEY"], node.environ()["KVCACHE_API_KEY"]}


def test_a_node_sends_the_load(sending: Project, cluster: Machines) -> None:
    """Its rows and clock are in the run; all listens within the cluster, no secret is seen, and nothing is left."""
    session = sending.start("--tier", "pnfs", "--record-baselines", **PLANTED)
    under_load(session)
    keys = keys_of(session, cluster.head)
    assert len(keys) == 2
    secrets = [*PLANTED.values(), *keys]
    for machine in cluster.all:
        for process in machine.processes():
            with contextlib.suppress(psutil.Error):
                assert not any(secret in word for word in process.cmdline() for secret in secrets)
        allowed = {machine.address, *(["127.0.0.1"] if machine is cluster.head else [])}
        assert machine.listening({process.pid for process in of_the_run(machine)}) == allowed
    (plan,) = [json.loads(path.read_text()) for path in sending.result("plan.json")]
    balancer = plan["base_url"].removesuffix("/v1")
    assert balancer.startswith(f"http://{cluster.head.address}:")
    other, key = cluster.all[0], next(iter(keys - {_load_key(cluster.head)}))
    assert {
        "prompt without a key": _status(other, f"{balancer}/v1/chat/completions"),
        "reset with the key": _status(other, f"{balancer}/reset_prefix_cache", key),
        "tokenizer with the key": _status(other, f"{balancer}/tokenize", key),
    } == {"prompt without a key": 401, "reset with the key": 403, "tokenizer with the key": 403}
    assert session.ended() == 0, session.out
    (facts,) = [json.loads(path.read_text()) for path in sending.result("run.json")]
    assert [facts["launcher"][name].split()[0] for name in ("vllm-0", "vllm-1", "load-node-0")] == [
        "kv-1",
        "kv-2",
        "kv-3",
    ]
    (node,) = facts["load"]["nodes"]
    assert (node["host"], node["address"].rpartition(":")[0]) == ("kv-3", cluster.head.address)
    assert facts["comparability"]["load.nodes"] == "1"
    # The machines are one kernel: whatever was measured, the clocks are the same.
    assert abs(node["clock"]["offset_before_s"]) <= node["clock"]["offset_before_uncertainty_s"] + 1e-9
    (rows,) = sending.result("requests.parquet")
    assert set(pd.read_parquet(rows)["node"]) == {node["address"]}
    assert "load node listens on" in session.logs("load-node-0.log")
    for path in [*sending.path.rglob("*"), *cluster.all[0].folder.parent.rglob("*")]:
        if path.is_file() and path != cluster.token and not path.is_socket():
            text = path.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in text], path
    for machine in cluster.all:
        assert wait_nothing(machine) == NOTHING, machine.name


def test_a_load_node_that_ends_is_named(sending: Project, cluster: Machines) -> None:
    """An agent of the load that is killed ends the boot with its name, and nothing is left on any machine."""
    session = sending.start("--tier", "pnfs")
    under_load(session)
    for process in [each for each in of_the_run(cluster.head) if "load-node" in each.cmdline()]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    assert session.ended() == 1
    assert re.search(r"load-node-0 ended while serving: it was killed", session.out), session.out
    for machine in cluster.all:
        assert wait_nothing(machine) == NOTHING, machine.name


def _load_key(machine: Machine) -> str:
    return next(each.environ()["KVCACHE_LOAD_KEY"] for each in of_the_run(machine) if "load-node" in each.cmdline())

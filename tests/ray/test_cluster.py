"""Sessions over three machines: where components run, who may ask them what, and what is left on each machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_kvcache.load.worker import CLOCK_STARTS
from tests.ray.conftest import Project, Session
from tests.ray.machines import NOTHING, Machine, Machines
from tests.stubs.programs import BLOCKS

#: What a user has in the environment of pytest, and what must be nowhere else than in processes' environments.
PLANTED = {"HF_TOKEN": "hf_plantedplantedplanted", "AWS_SECRET_ACCESS_KEY": "awsplantedplantedplanted"}
LONG: dict[str, Any] = {"duration_s": 12, "qps": 5}


def wait_nothing(machine: Machine, seconds: float = 40.0) -> dict[str, list[str]]:
    """Return what is left on a machine once nothing is, or at the limit."""
    deadline = time.monotonic() + seconds
    while (left := machine.left()) != NOTHING and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def under_load(session: Session) -> None:
    """Wait until a load's clock runs."""
    session.wait_for(lambda: CLOCK_STARTS in session.logs("load.log"), 90)


def ours(machine: Machine) -> list[psutil.Process]:
    """Return the processes on a machine that belong to a pair."""
    found = []
    for process in machine.processes():
        with contextlib.suppress(psutil.Error):
            if any("programs.py" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_a_session_over_three_machines(project: Project, cluster: Machines) -> None:
    """Each server is on a node of its own with the mount, router and load on pytest's; all of it ends with the run."""
    session = project.run("--record-baselines", "--tier", "pnfs", "--tier", "cpu", "--tier", "gpu")
    assert session.process.returncode == 0, session.out
    facts = [json.loads(path.read_text()) for path in project.result("run.json")]
    assert len(facts) == 3
    for each in facts:
        assert [each["launcher"][f"vllm-{i}"].split()[0] for i in (0, 1)] == ["kv-1", "kv-2"]
        assert each["comparability"]["serving.launcher"] == "ray"
        hosts = re.findall(r"http://([0-9.]+):", " ".join(each["commands"]["router"]))
        assert sorted(hosts) == ["10.77.0.11", "10.77.0.12"]
        assert each["commands"]["router"][2] == "127.0.0.1"
    for path in project.result("nodes.json"):
        nodes = json.loads(path.read_text())
        assert all(node["peak_memory_bytes"] > 1 << 20 and node["lost"] == "" for node in nodes.values())
    for machine in cluster.all:
        assert wait_nothing(machine) == NOTHING, machine.name


def test_gpus_and_work_of_nodes(project: Project, cluster: Machines) -> None:
    """A node whose GPUs cannot be sampled is a note with its name; on one kernel, servers of nodes are no strangers."""
    project.configure(**LONG)
    settings = project.path / "kvcache.toml"
    settings.write_text(settings.read_text().replace("gpus_per_server = 0", "gpus_per_server = 1"))
    session = project.start("--tier", "gpu", "--record-baselines")
    under_load(session)
    servers = {process.pid for machine in cluster.all[:-1] for process in ours(machine)}
    assert session.ended() == 0, session.out
    (path,) = project.result("run.json")
    facts = json.loads(path.read_text())
    notes = facts["gpus"]["notes"]
    for machine in cluster.all[:-1]:
        name = f"node {machine.name} ({machine.address})"
        assert any(note.startswith(f"{name}: no GPU telemetry: NVML: ") for note in notes), notes
        assert f"gpu boot-1: not looked at: {name}: no GPU telemetry: NVML: " in session.out
    work = facts["other_work"]
    assert "nodes" not in work
    assert servers
    assert not servers & {each["pid"] for each in work["top"]}
    assert not [each for each in work["top"] if each["name"] in {"raylet", "gcs_server"}]
    for machine in cluster.all:
        assert wait_nothing(machine) == NOTHING, machine.name


def test_who_may_ask_what_and_no_secret_is_seen(project: Project, cluster: Machines) -> None:
    """While a load runs: nothing of ours listens on all addresses, servers ask for the key, and no secret is seen."""
    project.configure(**LONG)
    session = project.start("--tier", "pnfs", "--record-baselines", **PLANTED)
    under_load(session)
    node, other = cluster.all[0], cluster.all[1]
    key = _key_of(ours(node))
    secrets = [*PLANTED.values(), key]
    for machine in cluster.all:
        for process in machine.processes():
            with contextlib.suppress(psutil.Error):
                assert not any(secret in word for word in process.cmdline() for secret in secrets)
    (url,) = {word for word in _words(ours(cluster.head)) if word.startswith(f"http://{node.address}:")}
    asked = {
        "prompt without a key": _status(other, f"{url}/v1/chat/completions"),
        "tokenizer without a key": _status(other, f"{url}/tokenize"),
        "reset with the key, from another node": _status(other, f"{url}/reset_prefix_cache", key),
        "reset with a forwarded address": _status(other, f"{url}/reset_prefix_cache", key, node.address),
        "reset without a key, from the node": _status(node, f"{url}/reset_prefix_cache"),
        "counters": _status(other, f"{url}/metrics", method="GET"),
    }
    assert asked == {
        "prompt without a key": 401,
        "tokenizer without a key": 401,
        "reset with the key, from another node": 403,
        "reset with a forwarded address": 403,
        "reset without a key, from the node": 401,
        "counters": 200,
    }
    for machine in cluster.all:
        allowed = "127.0.0.1" if machine is cluster.head else machine.address
        assert machine.listening({process.pid for process in ours(machine)}) == {allowed}
    assert session.ended() == 0, session.out
    for path in [*project.path.rglob("*"), *cluster.all[0].folder.parent.rglob("*")]:
        if path.is_file() and path != cluster.token and not path.is_socket():
            text = path.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in text], path


def test_the_runs_bucket_and_events_of_blocks_go_by_tls(project: Project, cluster: Machines) -> None:
    """With tier s3 and kv_aware, bucket and events cross machines by TLS alone, no key is seen, and nothing is left."""
    project.configure(more='\n[profiles.stub.balancer]\npolicy = "kv_aware"\n', **LONG)
    session = project.start("--tier", "s3", "--record-baselines")
    under_load(session)
    node, other, head = cluster.all
    carrying = {machine.name: [*ours(machine), *_relays(machine)] for machine in cluster.all}
    secrets = {
        word.strip('"\n').partition("\n")[0]
        for process in (process for each in carrying.values() for process in each)
        for name in ("RCLONE_AUTH_KEY", "KVCACHE_RELAY_KEY")
        for word in re.split(r",|-----[A-Z ]+-----", process.environ().get(name, ""))
        if word.strip()
    }
    assert len(secrets) == 3
    for machine in cluster.all:
        for process in machine.processes():
            with contextlib.suppress(psutil.Error):
                assert not any(secret in word for word in process.cmdline() for secret in secrets)
        listening = machine.listening({process.pid for process in carrying[machine.name]})
        assert listening == {"127.0.0.1", machine.address}
    (bucket,) = {word[6:] for word in _words(_relays(node)) if word.startswith(f"tls://{head.address}:")}
    (door,) = {word for word in _words(_relays(node)) if word.startswith("127.0.0.1:")}
    assert _status(node, f"http://{door}/", method="GET") == 200
    assert "certificate verify failed" in _told_by_tls(other, bucket, verified=True)
    assert BLOCKS not in _told_by_tls(other, _events(node), verified=False)
    for index in (0, 1):
        assert f"{BLOCKS} assistant@vllm-{index}" in session.logs("router.log")
    assert session.ended() == 0, session.out
    (path,) = project.result("run.json")
    facts = json.loads(path.read_text())
    assert facts["comparability"]["storage.endpoint"] == f"rclone on kv-3 ({head.address}), by TLS relays"
    assert "s3 (by TLS relays)" in session.out
    for machine in cluster.all:
        assert wait_nothing(machine) == NOTHING, machine.name
    for path in [*project.path.rglob("*"), *cluster.all[0].folder.parent.rglob("*")]:
        if path.is_file() and not path.is_socket():
            text = path.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in text], path


def test_a_node_that_is_lost_ends_the_boot_with_its_name(project: Project, cluster: Machines) -> None:
    """A node that loses power under load fails the test with its name; nothing is left on the others."""
    project.configure(**LONG)
    session = project.start("--tier", "cpu")
    under_load(session)
    lost = cluster.all[1]
    cluster.kill_node(lost)
    try:
        assert session.ended() == 1
        assert f"node kv-2 ({lost.address}) was lost" in session.out
        for machine in (cluster.all[0], cluster.head):
            assert wait_nothing(machine) == NOTHING, machine.name
    finally:
        cluster.start_ray(lost, {"pnfs": 1})
        cluster.wait(3)
    # The agent, its watchdog and its folder lost power too: the next run removes what they left.
    assert wait_nothing(lost, 0)["scratch"] != []
    project.configure()
    again = project.run("--tier", "gpu", "--record-baselines")
    assert again.process.returncode == 0, again.out
    assert re.search(r"node kv-2 \(10\.77\.0\.12\): cleaned up after run .*, which was killed", again.out)
    assert wait_nothing(lost) == NOTHING


def test_a_killed_pytest_leaves_nothing_on_the_nodes(project: Project, cluster: Machines) -> None:
    """After kill -9 of pytest the nodes clean themselves; what is left on its own machine, the next run removes."""
    project.configure(**LONG)
    session = project.start("--tier", "pnfs")
    under_load(session)
    _pytest_of(session).kill()
    session.process.wait()
    for machine in cluster.all[:-1]:
        assert wait_nothing(machine) == NOTHING, machine.name
    project.configure()
    again = project.run("--tier", "pnfs", "--record-baselines")
    assert again.process.returncode == 0, again.out
    assert wait_nothing(cluster.head) == NOTHING


def test_an_agent_and_its_watchdog_killed(project: Project, cluster: Machines) -> None:
    """Where agent and watchdog of a node are killed together, servers stay until the next run ends them by journal."""
    project.configure(**LONG)
    session = project.start("--tier", "cpu")
    under_load(session)
    node = cluster.all[0]
    for process in node.processes():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if "nodes.watchdog" in words or "ray::_Agent" in words:
                process.kill()
    assert session.ended() == 1
    assert f"node kv-1 ({node.address}) was lost" in session.out
    assert node.left()["journals"] != []
    project.configure()
    again = project.run("--tier", "gpu", "--record-baselines")
    assert re.search(r"node kv-1 \(10\.77\.0\.11\): cleaned up after run", again.out), again.out
    assert again.process.returncode == 0, again.out
    assert wait_nothing(node) == NOTHING


def test_a_server_that_ends_is_diagnosed_by_its_log(project: Project, cluster: Machines) -> None:
    """A server that ends while it starts is told with its exit code, the cause from its log, and where that is."""
    project.configure(vllm_args='"--stub-fail", "boot"')
    session = project.run("--tier", "gpu")
    assert session.process.returncode == 1
    assert re.search(r"vllm-[01] ended while starting \(exit code 1\): ValueError: the first cause", session.out)
    assert "ValueError: the first cause" in session.logs("vllm-0.log")
    for machine in cluster.all:
        assert wait_nothing(machine) == NOTHING, machine.name


def test_a_node_without_the_resource_is_named(project: Project, cluster: Machines) -> None:
    """Nothing boots where too few nodes have what is asked for; each is listed with what it has."""
    project.configure(ray="resources = {pnfs = 1, fast = 1}\n")
    session = project.run("--tier", "gpu")
    assert session.process.returncode == 1
    assert "needs 2 nodes with CPU 0.5, pnfs 1, fast 1, and 0 of 3 have it" in session.out
    assert f"kv-1 ({cluster.all[0].address}) has fast 0" in session.out
    assert project.result("vllm-0.log") == []


def test_a_node_with_another_version_is_named(project: Project, cluster: Machines) -> None:
    """Nothing boots where a node's engine differs from this machine's; the node and both versions are named."""
    python = project.engine / "bin" / "python"
    other = python.read_text().replace('"lmcache": "0.stub"', '"lmcache": "0.other"')
    python.write_text(
        f'#!/bin/sh\n[ "$(hostname)" != kv-2 ] || {{\n{other.split(chr(10), 1)[1]}exit\n}}\n{python.read_text()}'
    )
    session = project.run("--tier", "gpu")
    assert session.process.returncode == 1
    expected = (
        f"node kv-2 ({cluster.all[1].address}): its engine .* differs from this machine's: lmcache 0.other in place"
    )
    assert re.search(re.escape(expected).replace(r"\.\*", ".*"), session.out), session.out
    assert "node kv-1" not in session.out
    assert project.result("vllm-0.log") == []


def test_a_node_that_does_not_see_the_shared_folder_is_named(project: Project, cluster: Machines) -> None:
    """Nothing boots where a node has nothing mounted at the tier's path: servers there would store into nothing."""
    shared = project.path.parent / "shared"
    shared.mkdir()
    without = cluster.all[1]
    cluster.kill_node(without)
    cluster.wait(2)
    cluster.start_ray(without, {"pnfs": 1}, without=shared)
    cluster.wait(3)
    try:
        project.configure(more=f'\n[tiers.pnfs]\nkind = "fs"\npath = "{shared}"\n')
        session = project.run("--tier", "pnfs")
        assert session.process.returncode == 1
        assert re.search(rf"node kv-2 \({re.escape(without.address)}\): does not see {shared}/kvcache-", session.out)
        assert "node kv-1" not in session.out
        assert project.result("vllm-0.log") == []
        assert list(shared.iterdir()) == []
    finally:
        cluster.kill_node(without)
        cluster.wait(2)
        cluster.start_ray(without, {"pnfs": 1})
        cluster.wait(3)


def test_an_interrupted_session_leaves_nothing(project: Project, cluster: Machines) -> None:
    """Ctrl-C under load ends servers on all nodes, their folders, ports and the placement."""
    project.configure(**LONG)
    session = project.start("--tier", "pnfs")
    under_load(session)
    os.kill(_pytest_of(session).pid, signal.SIGINT)
    assert session.ended() == 2
    for machine in cluster.all:
        assert wait_nothing(machine) == NOTHING, machine.name


def _pytest_of(session: Session) -> psutil.Process:
    """Return pytest itself: what makes it a process of the machine became it by exec."""
    return psutil.Process(session.process.pid)


def _relays(machine: Machine) -> list[psutil.Process]:
    """Return the ends of ways by TLS on a machine."""
    found = []
    for process in machine.processes():
        with contextlib.suppress(psutil.Error):
            if "--certificate" in process.cmdline():
                found.append(process)
    return found


def _events(machine: Machine) -> str:
    """Return HOST:PORT at which a machine has the events of its server by TLS."""
    (found,) = {word[6:] for word in _words(_relays(machine)) if word.startswith(f"tls://{machine.address}:")}
    return found


def _told_by_tls(machine: Machine, address: str, *, verified: bool) -> str:
    """Return what a stranger on a machine is told at HOST:PORT, or why it is told nothing."""
    code = (
        "import socket, ssl, sys\n"
        "host, _, port = sys.argv[1].rpartition(':')\n"
        "context = ssl.create_default_context() if sys.argv[2] == 'True' else ssl._create_unverified_context()\n"
        "with socket.create_connection((host, port), timeout=9) as raw:\n"
        "    print(context.wrap_socket(raw, server_hostname=host).recv(999))\n"
    )
    done = machine.run(sys.executable, "-c", code, address, str(verified))
    return done.stdout + done.stderr


def _words(processes: list[psutil.Process]) -> list[str]:
    return [word for process in processes for word in process.cmdline()]


def _key_of(processes: list[psutil.Process]) -> str:
    return next(key for process in processes if (key := process.environ().get("VLLM_API_KEY")))


def _status(machine: Machine, url: str, key: str = "", forwarded: str = "", method: str = "POST") -> int:
    code = (
        "import os, sys, urllib.request, urllib.error\n"
        "url, forwarded, method = sys.argv[1:]\n"
        "given = {'Authorization': 'Bearer ' + os.environ['ASKED_WITH']} if os.environ['ASKED_WITH'] else {}\n"
        "given |= {'X-Forwarded-For': forwarded} if forwarded else {}\n"
        "body = b'{}' if method == 'POST' else None\n"
        "request = urllib.request.Request(url, body, given, method=method)\n"
        "try: print(urllib.request.urlopen(request, timeout=9).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
    )
    machine.environ["ASKED_WITH"] = key
    done = machine.run(sys.executable, "-c", code, url, forwarded, method)
    del machine.environ["ASKED_WITH"]
    return int(done.stdout or pytest.fail(done.stderr))


def test_the_scratch_of_a_machine_is_its_own(cluster: Machines) -> None:
    """The machines of these tests have names, addresses and folders of their own: nothing rests on loopback."""
    names = [machine.run("hostname").stdout.strip() for machine in cluster.all]
    assert names == ["kv-1", "kv-2", "kv-3"]
    assert len({machine.tmp for machine in cluster.all}) == 3
    assert all(isinstance(machine.tmp, Path) for machine in cluster.all)

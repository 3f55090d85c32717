"""A real pair in containers: vLLM, LMCache, router and S3 server from an image, on a real Docker daemon."""

from __future__ import annotations

import json
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pandas as pd
import psutil
import pytest

from pytest_kvcache.runs import containers
from tests.docker.conftest import Image
from tests.integration.test_real_pair import BESIDE, SHORT, shm_of
from tests.projects import NOTHING, Project, Session, configure, ours, run_folder, traces

pytestmark = pytest.mark.engine

COMPONENTS = {"vllm-0", "vllm-1", "lmcache-0", "lmcache-1", "router"}


@pytest.fixture
def image_project(project: Project, image: Image) -> Project:
    """A user's project with the engine in an image and a short workload."""
    with_image(project, image)
    return project


def with_image(project: Project, image: Image) -> None:
    """Have a project use an image."""
    mounts = json.dumps([str(path) for path in image.mounts])
    project.makepyprojecttoml(
        f"""
        [tool.pytest.ini_options]
        kv_engine = "image:{image.name}"
        kv_image_mounts = {mounts}
        kv_profile = "short"
        """
    )
    configure(project, SHORT.format(mode=BESIDE, more=""))


@pytest.fixture
def daemon() -> Iterator[docker.DockerClient]:
    """The real daemon."""
    with containers.daemon(containers.address()) as client:
        yield client


def of_runs(daemon: docker.DockerClient) -> list[Any]:
    """Return all containers that the plugin has made, whatever they do."""
    # One may end between the list and the look at it: those of another session's preflight, for instance.
    return list(daemon.containers.list(all=True, filters={"label": containers.LABEL}, ignore_removed=True))


def under_load(project: Project, tier: str) -> Session:
    """Start a session on `tier` and wait until its load is on."""
    session = Session(project, "-v", "--tier", tier, "--record-baselines", "--kv-allow-suspect", "--kv-boots", "1")
    session.wait_for(lambda: bool(list(session.path.rglob("plan.json"))), timeout_s=600)
    return session


def finished(session: Session, tier: str, project: Project) -> tuple[str, pd.DataFrame, dict[str, float]]:
    """Wait for a session that must pass; return its output, its rows, and LMCache's counters of both servers."""
    assert session.process.wait(600) == 0, session.out.read_text()
    folder = run_folder(project) / tier / "boot-1" / "context-3500"
    facts = json.loads((folder / "run.json").read_text())
    after = facts["load"]["counters_after"]
    names = {key for name in ("lmcache-0", "lmcache-1") for key in after[name]}
    summed = {key: after["lmcache-0"].get(key, 0) + after["lmcache-1"].get(key, 0) for key in names}
    assert facts["comparability"]["serving.launcher"] == "docker"
    return session.out.read_text(), pd.read_parquet(folder / "requests.parquet"), summed


def test_a_pair_on_a_shared_folder(image_project: Project, kvcache_home: Path, daemon: docker.DockerClient) -> None:
    """Two servers in containers find each other's KV in the shared folder, count as the run's, and leave nothing."""
    session = under_load(image_project, "pnfs")
    assert {each.name.split("-", 4)[-1] for each in of_runs(daemon)} == COMPONENTS
    segments = shm_of(image_project)
    output, rows, counters = finished(session, "pnfs", image_project)
    assert set(rows["status"]) == {"ok"}
    assert set(rows["server"]) == {"vllm-0", "vllm-1"}
    assert (rows["cached_tokens"] > 3000).any()
    assert counters["lmcache_mp_lookup_hit_l2_tokens_total"] > 3000
    memory = re.search(r"peak memory ([\d.]+) GB", output)
    assert memory is not None
    assert 2 < float(memory.group(1)) < 12
    assert of_runs(daemon) == []
    assert traces(image_project.path, kvcache_home) == NOTHING
    assert segments
    assert not any(segment.exists() for segment in segments)


def test_a_pair_on_cpu_ram(image_project: Project, kvcache_home: Path, daemon: docker.DockerClient) -> None:
    """KV comes from each server's own CPU RAM, over memory that the two containers of a server share."""
    _, rows, counters = finished(under_load(image_project, "cpu"), "cpu", image_project)
    assert set(rows["status"]) == {"ok"}
    assert counters["lmcache_mp_lookup_hit_l1_tokens_total"] > 3000
    # There is no L2, and LMCache may count its hits all the same.
    assert counters.get("lmcache_mp_lookup_hit_l2_tokens_total", 0) == 0
    assert of_runs(daemon) == []
    assert traces(image_project.path, kvcache_home) == NOTHING


def test_secrets_of_s3_are_nowhere_to_be_seen(
    image_project: Project, kvcache_home: Path, daemon: docker.DockerClient
) -> None:
    """While a pair on S3 serves, its keys are in no `docker inspect`, no process list, no file and no log."""
    session = under_load(image_project, "s3")
    (server,) = [each for each in of_runs(daemon) if each.name.endswith("-s3")]
    environ = psutil.Process(server.attrs["State"]["Pid"]).environ()
    keys = environ["RCLONE_AUTH_KEY"].strip('"').split(",")
    assert [len(key) for key in keys] == [20, 40]
    shown = [json.dumps(each.attrs) for each in of_runs(daemon)]
    assert len(shown) == len(COMPONENTS) + 1
    shown += [path.read_text(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not list(Path(tempfile.gettempdir()).glob("kvc-*/*.env"))  # read, and gone
    _, rows, counters = finished(session, "s3", image_project)
    assert set(rows["status"]) == {"ok"}
    assert counters["lmcache_mp_lookup_hit_l2_tokens_total"] > 3000
    left = [path for folder in (image_project.path, kvcache_home) for path in folder.rglob("*") if path.is_file()]
    shown += [path.read_text(errors="replace") for path in left if "models" not in path.parts]
    assert not any(key in text for key in keys for text in shown)
    assert of_runs(daemon) == []
    assert traces(image_project.path, kvcache_home) == NOTHING


def test_a_killed_run_is_cleaned_up_after(
    image_project: Project, kvcache_home: Path, daemon: docker.DockerClient
) -> None:
    """After kill -9 in the middle of a boot the containers live on; the next run removes them and says so."""
    session = Session(image_project, "--tier", "cpu")
    session.wait_for(lambda: len(of_runs(daemon)) == 4 and len(ours(image_project.path)) >= 6, timeout_s=600)
    session.end(signal.SIGKILL)
    assert [each.status for each in of_runs(daemon)] == ["running"] * 4
    configure(image_project, SHORT.format(mode=BESIDE, more="vllm_args = ['--no-such-argument']"))
    after = Session(image_project, "--tier", "gpu")
    assert after.process.wait(300) == 1
    output = after.out.read_text()
    assert re.search(r"which was killed: \d+ processes ended, \d+ folders removed, 4 containers removed", output)
    assert "no-such-argument" in output
    assert of_runs(daemon) == []
    assert traces(image_project.path, kvcache_home) == NOTHING

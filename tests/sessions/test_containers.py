"""Whole pytest sessions with an engine in an image."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.engine.named import engine_named
from tests.projects import NOTHING, Project, configure, run_apart, run_folder, traces
from tests.stubs.docker import StubDocker, image_path
from tests.stubs.engine import toml
from tests.unit.test_tiers import CATALOGUE, TINY

CONFTEST = """
import docker, sys
sys.path.insert(0, {root!r})
from tests.stubs.docker import StubDocker
docker.DockerClient = StubDocker({{"kv:1": "sha256:1"}}, {{"PATH": {path!r}}})

def pytest_unconfigure():
    print("LEFT", docker.DockerClient.all)
    print("CREATED", [each["name"] for each in docker.DockerClient.created])
"""


@pytest.fixture
def image_project(project: Project, stub_engine: Path, socket_of_daemon: str, tmp_path: Path) -> Project:
    """A project whose daemon has the image `kv:1` of stub programs."""
    root = str(Path(__file__).parents[2])
    project.makeconftest(CONFTEST.format(root=root, path=image_path(tmp_path / "image", stub_engine)))
    configure(project, toml())
    return project


def test_a_session_in_containers(image_project: Project, kvcache_home: Path) -> None:
    """Every component but the load is a container; the baseline says so, memory is counted, nothing is left."""
    result = run_apart(image_project, "--tier", "s3", "--kv-engine=image:kv:1", "--record-baselines", "-s")
    result.assert_outcomes(passed=3)
    (created,) = [line for line in result.outlines if line.startswith("CREATED")]
    for name in ("vllm-0", "vllm-1", "lmcache-0", "lmcache-1", "router", "s3"):
        assert created.count(f"-{name}'") == 1
    assert "LEFT []" in result.stdout.str()
    (cell,) = (image_project.path / "baselines").rglob("*.json")
    assert json.loads(cell.read_text())["comparability"]["serving.launcher"] == "docker"
    assert traces(image_project.path, kvcache_home) == NOTHING
    folder = run_folder(image_project) / "s3" / "boot-1" / "logs"
    assert {path.name for path in folder.iterdir()} >= {"vllm-0.log", "lmcache-1.log", "s3.log", "router.log"}


def test_a_profile_names_its_image(image_project: Project, stub_engine: Path, tmp_path: Path) -> None:
    """It is pulled where that is asked for, its digest is a key of the baseline, and a tag that moved is told."""
    image_project.makepyprojecttoml('[tool.pytest.ini_options]\nkv_profile = "stub"\naddopts = ["-p", "no:randomly"]\n')
    configure(image_project, toml().replace("[profiles.stub]", '[profiles.stub]\nimage = "kv:2"', 1))
    root, path = str(Path(__file__).parents[2]), image_path(tmp_path / "second", stub_engine)
    text = CONFTEST.format(root=root, path=path)
    for n in (2, 3):
        digest = f"kv@sha256:{str(n) * 64}"
        more = (
            f"docker.DockerClient.registry = {{'kv:2': '{n}'}}\ndocker.DockerClient.digests = {{'{n}': ['{digest}']}}\n"
        )
        image_project.makeconftest(text.replace("\ndef pytest_unc", f"{more}\ndef pytest_unc"))
        result = run_apart(image_project, "--tier", "gpu", "--kv-pull=missing", "--record-baselines")
        out = result.stdout.str()
        assert "kvcache: pulling kv:2" in out
        assert f"s: {digest.partition('@')[2]}" in out
        if n == 2:
            result.assert_outcomes(passed=3)
            (cell,) = (image_project.path / "baselines").rglob("*.json")
            assert json.loads(cell.read_text())["comparability"]["serving.image"] == f"sha256:{'2' * 64}"
    assert f"serving.image: sha256:{'2' * 64} -> sha256:{'3' * 64}" in out


def test_two_sides_say_what_they_are(daemon: StubDocker, stub_engine: Path) -> None:
    """In an A/B of a folder and an image each is named with how it runs and what is in it."""
    folder = Arm("A", engine_named(str(stub_engine)), TINY, CATALOGUE.tiers["cpu"])
    image = Arm("B", engine_named("image:kv:1"), TINY, CATALOGUE.tiers["cpu"])
    assert str(folder) == f"{stub_engine} (process): python 3.11.0, vllm 0.stub, lmcache 0.stub, vllm-router 0.stub"
    assert re.fullmatch(r"image:kv:1 \(docker\): python [\d.]+, vllm 0.stub, image sha256:1", str(image))


def test_an_image_that_is_not_here_is_a_usage_error(image_project: Project) -> None:
    """It is said before anything is collected or booted."""
    result = run_apart(image_project, "--tier", "gpu", "--kv-against=image:kv:2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*image:kv:2: no such image on this machine*", "*docker pull kv:2*"])


def test_mounts_come_from_ini_and_command_line(image_project: Project) -> None:
    """One that cannot be is refused by name of the option before anything boots."""
    result = run_apart(image_project, "--tier", "gpu", "--kv-engine=image:kv:1", "--kv-image-mount=/no/such")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*kv_image_mounts: /no/such is not there*"])

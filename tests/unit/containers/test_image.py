"""What is found in an image, and what is said of one that cannot be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from subprocess import TimeoutExpired

import docker
import pytest

from pytest_kvcache.engine import image
from pytest_kvcache.engine.environment import Engine
from pytest_kvcache.engine.image import check, inspect_image
from pytest_kvcache.engine.models import model_folder
from pytest_kvcache.errors import ConfigError, SetupError
from tests.stubs.docker import StubDocker, image_path
from tests.stubs.engine import _script, make_engine
from tests.unit.test_tiers import TINY


def test_versions_and_programs_are_found(daemon: StubDocker, stub_engine: Path) -> None:
    """One short container says what is in the image; nothing of it stays."""
    engine = inspect_image("kv:1", (), None)
    assert engine.versions["vllm"] == "0.stub"
    assert engine.versions["image"] == "sha256:1"
    assert engine.find("lmcache") == stub_engine / "bin" / "lmcache"
    assert engine.vllm_launch("m") == (str(stub_engine / "bin" / "vllm"), "serve", "m")
    assert not {"vllm", "lmcache", "vllm-router", "rclone"} & set(engine.local)
    assert len(daemon.created) == 1
    assert daemon.all == []


def test_a_program_is_run_to_its_end(daemon: StubDocker) -> None:
    """Output, errors and exit code of a program in the image come back; one that takes too long is ended."""
    engine = inspect_image("kv:1", (), None)
    done = engine.call(["sh", "-c", "echo out; echo bad >&2; exit 7"], timeout_s=10)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "bad\n")
    with pytest.raises(TimeoutExpired):
        engine.call(["sleep", "60"], timeout_s=0.2)


def test_the_tiny_model_is_made_in_the_image(daemon: StubDocker, tmp_path: Path) -> None:
    """Its Python writes it, and sees the script and the folder of models only; a failure says why."""
    engine = inspect_image("kv:1", (), None)
    with pytest.raises(SetupError, match=r"could not be made: (.|\n)*No module named 'torch'"):
        model_folder(TINY, engine, tmp_path)
    (script, models) = daemon.created[-1]["volumes"]
    assert script.endswith("/engine:ro")
    assert models == f"{tmp_path}/models:{tmp_path}/models:rw"


def test_what_the_image_lacks_is_taken_from_here(daemon: StubDocker, stub_engine: Path, tmp_path: Path) -> None:
    """Router and S3 server may be this machine's, and run here; vLLM and LMCache may not."""
    bare = make_engine(tmp_path / "bare")
    for name in ("vllm-router", "rclone", "lmcache"):
        (bare / "bin" / name).unlink()
    daemon.env = {"PATH": image_path(tmp_path / "other", bare)}
    with pytest.raises(ConfigError, match="has no vllm-router, and neither has this machine"):
        inspect_image("kv:1", (), None)
    engine = inspect_image("kv:1", (), Engine(stub_engine, {}))
    assert engine.find("rclone") == stub_engine / "bin" / "rclone"
    assert engine.is_local(engine.program("vllm-router"))
    assert not engine.owns("vllm-router")
    assert engine.find("lmcache") is None
    with pytest.raises(SetupError, match="image:kv:1: lmcache is missing"):
        engine.program("lmcache")


def test_an_image_without_vllm(daemon: StubDocker, tmp_path: Path) -> None:
    """It is refused, with what was found in its place; one without Python says so."""
    folder = tmp_path / "plain"
    folder.mkdir()
    _script(folder / "python3", f'exec {sys.executable} "$@"')
    daemon.env = {"PATH": f"{folder}:/bin"}
    with pytest.raises(SetupError, match=r"image:kv:1: has no vLLM \(found: python\)"):
        inspect_image("kv:1", (), None)
    (tmp_path / "sh").symlink_to("/bin/sh")
    daemon.env = {"PATH": str(tmp_path)}
    with pytest.raises(SetupError, match="its Python does not run: none is there"):
        inspect_image("kv:1", (), None)


def test_an_image_that_is_not_here(daemon: StubDocker) -> None:
    """It is not pulled: the command that does is named."""
    with pytest.raises(ConfigError, match=r"image:kv:2: no such image on this machine\n  -> docker pull kv:2"):
        check("kv:2")


def test_a_daemon_elsewhere(daemon: StubDocker, socket_of_daemon: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon of another machine, or one whose containers get another network, is refused."""
    monkeypatch.setattr(image, "_BOOT_ID", Path("/proc/sys/kernel/osrelease"))
    with pytest.raises(ConfigError, match=r"its containers run on another machine \(without a name, Docker 20"):
        inspect_image("kv:1", (), None)
    monkeypatch.undo()
    monkeypatch.setattr(docker, "DockerClient", daemon)
    monkeypatch.setenv("DOCKER_HOST", socket_of_daemon)
    monkeypatch.setattr(image, "_PLACE", ("/proc/self/ns/net", "/proc/self/ns/uts"))
    with pytest.raises(ConfigError, match="do not get this machine's network"):
        inspect_image("kv:1", (), None)


def test_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own words, in one line, and what to look at: the real SDK at a socket that is not there."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nowhere.sock")
    with pytest.raises(ConfigError) as caught:
        check("kv:1")
    assert caught.value.what == "docker: the daemon does not answer: No such file or directory"
    assert "group docker" in caught.value.todo


def test_docker_is_not_imported_without_an_image() -> None:
    """A session that names no image does without the SDK."""
    code = "import sys, pytest_kvcache.activation, pytest_kvcache.perf; sys.exit('docker' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

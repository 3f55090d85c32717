"""What a container is asked for, and what `docker run` says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kvcache.engine.container import BindMount, Container, parse_mount, same_path
from pytest_kvcache.engine.daemon import Daemon
from pytest_kvcache.engine.image import ImageEngine, LocalImage
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.docker import container_of
from pytest_kvcache.serving.render import render
from tests.unit.test_tiers import CATALOGUE, KEYS, QWEN, TINY

BIN = Path("/usr/local/bin")
ENGINE = ImageEngine(
    reference="kv:1",
    image=LocalImage("sha256:1", "", Daemon()),
    versions={"vllm": "0.32.0", "lmcache": "0.5.6"},
    interpreter=BIN / "python3",
    programs={name: BIN / name for name in ("vllm", "lmcache")},
    mounts=(same_path(Path("/data/hf")),),
    local={"vllm-router": Path("/here/vllm-router"), "rclone": Path("/here/rclone")},
)


def contained(component: Component, *, gpus: bool = True, allotted: bool = False) -> Container:
    """Return the container of a component."""
    return container_of(
        component,
        ENGINE,
        name="kvc-R-vllm-0",
        log=Path("/logs/vllm-0.log"),
        secrets=Path("/scratch/vllm-0.env"),
        scratch=Path("/scratch"),
        mounts=[same_path(Path("/scratch"), writable=True)],
        labels={"pytest-kvcache.run": "R"},
        gpus=gpus,
        allotted=allotted,
    )


SERVER = Component("vllm-0", ("/usr/local/bin/vllm", "serve", "m"), "servers", {"X": "1"}, {"KEY": "s3cret"})


def test_a_container_sees_what_it_needs_and_no_more() -> None:
    """It gets mounts, host namespaces and all GPUs; it is this user without capabilities, and has no image entry."""
    asked = contained(SERVER).sdk()
    assert asked["volumes"] == ["/data/hf:/data/hf:ro", "/scratch:/scratch:rw", "/logs:/logs:rw"]
    assert [asked[key] for key in ("network_mode", "ipc_mode", "pid_mode", "userns_mode")] == ["host"] * 4
    assert (asked["cap_drop"], asked["security_opt"]) == (["ALL"], ["no-new-privileges"])
    assert asked["user"].count(":") == 1
    (gpus,) = asked["device_requests"]
    assert (gpus["Count"], gpus["Capabilities"]) == (-1, [["gpu"]])
    assert asked["entrypoint"] == ["sh"]
    assert asked["command"][-3:] == ["/usr/local/bin/vllm", "serve", "m"]
    assert asked["environment"]["X"] == "1"


def test_only_servers_of_gpu_profiles_get_gpus() -> None:
    """Neither the router nor any server of a CPU profile asks for a GPU, which a machine without one would refuse."""
    assert contained(SERVER, gpus=False).sdk()["device_requests"] is None
    assert contained(Component("router", ("vllm-router",), "balancer")).sdk()["device_requests"] is None


@pytest.mark.parametrize(
    ("names", "asked", "inside", "flag"),
    [
        ("4", ["4"], "0", '"device=4"'),
        ("5,4", ["5", "4"], "0,1", '"device=5,4"'),
        (
            "GPU-8932f937,GPU-3c1f",
            ["GPU-8932f937", "GPU-3c1f"],
            "GPU-8932f937,GPU-3c1f",
            '"device=GPU-8932f937,GPU-3c1f"',
        ),
        ("MIG-c7384736", ["MIG-c7384736"], "MIG-c7384736", '"device=MIG-c7384736"'),
    ],
)
def test_a_container_gets_the_gpus_of_its_server(names: str, asked: list[str], inside: str, flag: str) -> None:
    """Under an allotment no container sees a GPU of somebody else's; numbers count anew among those that it sees."""
    container = contained(replace(SERVER, env={"CUDA_VISIBLE_DEVICES": names}), allotted=True)
    (request,) = container.sdk()["device_requests"]
    assert (request["DeviceIDs"], container.env["CUDA_VISIBLE_DEVICES"]) == (asked, inside)
    argv = container.run_argv()
    assert argv[argv.index("--gpus") + 1] == flag


def test_secrets_are_in_no_argument() -> None:
    """What `docker inspect` and the process list would show holds the name of the file, and nothing of its content."""
    container = contained(SERVER)
    assert "s3cret" not in str(container.sdk()) + str(container.run_argv()) + repr(container)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/usr", BindMount(Path("/usr"), Path("/usr"))),
        ("/usr:rw", BindMount(Path("/usr"), Path("/usr"), True)),
        ("/usr:/opt:ro", BindMount(Path("/usr"), Path("/opt"))),
    ],
)
def test_mounts_of_the_user(text: str, mount: BindMount) -> None:
    """A mount is read-only and at its own path unless it says otherwise."""
    assert parse_mount(text, "x") == mount


@pytest.mark.parametrize(
    ("text", "said"), [("usr", "allowed: SOURCE"), ("/a:/b:/c", "allowed"), ("/nowhere", "not th")]
)
def test_mounts_that_cannot_be(text: str, said: str) -> None:
    """A relative path, a third one, or a source that Docker would make up is refused."""
    with pytest.raises(ConfigError, match=said):
        parse_mount(text, "kv_image_mounts")


def test_render_prints_docker_run() -> None:
    """Programs of the image are shown as `docker run`, those that it lacks as commands; secrets by name only."""
    script = render(QWEN, CATALOGUE.tiers["s3"], ENGINE, KEYS, as_json=False).replace(" \\\n    ", " ")
    assert "docker run --rm " in script
    assert "--gpus all" in script
    assert "--env AWS_SECRET_ACCESS_KEY --entrypoint" in script
    assert "--entrypoint /usr/local/bin/vllm kv:1 serve Qwen/Qwen3-8B" in script
    assert "\n/here/rclone serve s3" in script
    assert "SECRET" not in script.replace("AWS_SECRET_ACCESS_KEY", "")
    allotted = render(QWEN, CATALOGUE.tiers["gpu"], ENGINE, {"CUDA_VISIBLE_DEVICES": "4,5"}, as_json=False)
    assert allotted.count("--gpus '\"device=4\"'") == 1
    assert allotted.count("--env CUDA_VISIBLE_DEVICES=0 ") == 2
    pnfs = render(TINY, CATALOGUE.tiers["pnfs"], ENGINE, KEYS, as_json=False)
    assert "--gpus" not in pnfs
    assert "--volume /tmp/kvcache-RUN-pnfs:/tmp/kvcache-RUN-pnfs:rw" in pnfs
    assert "--volume /FOLDER/OF/" in pnfs

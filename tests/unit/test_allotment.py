"""Which GPUs the caller may use, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.campaign import settings
from pytest_kvcache.config.options import Options
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.render import render
from pytest_kvcache.telemetry import allotment as allotments
from pytest_kvcache.telemetry import hardware
from pytest_kvcache.telemetry.allotment import allotment, allotted, dealt
from pytest_kvcache.telemetry.listing import apps, listed
from tests.unit.test_tiers import CATALOGUE, QWEN

#: As `nvidia-smi -L` prints it.
LISTING = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-8932f937-d72c-4106-c12f-20bd9faed9f6)
  MIG 3g.40gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 1g.10gb     Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-3c1f5b0e-0b5a-9d2e-7c11-6a1a4e0a3a11)
"""
APPS = "GPU-3c1f5b0e-0b5a-9d2e-7c11-6a1a4e0a3a11, 4711, python, 60000\n"


@pytest.mark.parametrize(
    ("environ", "devices"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, ("4", "5")),
        ({"CUDA_VISIBLE_DEVICES": " 4 , 05 "}, ("4", "5")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "  "}, ()),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "3,-1,4"}, ("3",)),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "1,x,2"}, ("1",)),
        ({"CUDA_VISIBLE_DEVICES": "1,,2"}, ("1",)),
        ({"CUDA_VISIBLE_DEVICES": "4,4"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "4,04,5"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937,GPU-3c1f"}, ("GPU-8932f937", "GPU-3c1f")),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937, GPU-8932f937"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937,3"}, ("GPU-8932f937",)),
        ({"CUDA_VISIBLE_DEVICES": "MIG-c7384736,MIG-a28ad590"}, ("MIG-c7384736", "MIG-a28ad590")),
        ({"CUDA_VISIBLE_DEVICES": "MIG-GPU-8932f937/1/0"}, ("MIG-GPU-8932f937/1/0",)),
        ({"HIP_VISIBLE_DEVICES": "2"}, ("2",)),
        ({"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "2"}, ("1",)),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, ()),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, ()),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, None),
        ({"NVIDIA_VISIBLE_DEVICES": "6,7"}, None),
        ({"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": "1"}, ("1",)),
    ],
)
def test_what_is_allotted(environ: dict[str, str], devices: tuple[str, ...] | None) -> None:
    """The list is read as CUDA reads it; a container's numbers are those of its host, and no list of ours."""
    assert allotted(environ) == devices


def test_void_in_a_container_with_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where GPUs came by CDI, `void` stands beside their device nodes; without nodes there are none."""
    environ = {"NVIDIA_VISIBLE_DEVICES": "void", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    monkeypatch.setattr(allotments, "_DEVICES", tmp_path)
    assert allotted(environ) == ()
    (tmp_path / "nvidiactl").touch()
    assert allotted(environ) == ()
    (tmp_path / "nvidia3").touch()
    assert allotted(environ) is None
    assert allotted({**environ, "NVIDIA_VISIBLE_DEVICES": "none"}) == ()


@given(st.lists(st.integers(0, 99), unique=True, min_size=1), st.integers(1, 4), st.integers(0, 4))
def test_servers_get_their_part_by_position(numbers: list[int], servers: int, each: int) -> None:
    """Servers are given consecutive parts of what is allotted and nothing else, or it is an error."""
    allowed = allotment({"CUDA_VISIBLE_DEVICES": ",".join(map(str, numbers))})
    if len(numbers) < servers * each:
        with pytest.raises(ConfigError, match=f"{servers * each} GPUs are needed"):
            dealt(allowed, servers=servers, each=each)
        return
    parts = dealt(allowed, servers=servers, each=each)
    assert [name for part in parts for name in part] == [str(n) for n in numbers[: servers * each]]
    assert {len(part) for part in parts} == {each}


def test_without_an_allotment_numbers_count_from_zero() -> None:
    """Nobody says which: the first ones of the machine; and one MIG instance is all that a process sees."""
    assert dealt(None, servers=2, each=2) == [("0", "1"), ("2", "3")]
    with pytest.raises(ConfigError, match="one MIG instance"):
        dealt(allotment({"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}), servers=1, each=2)


def test_render_under_an_allotment() -> None:
    """LMCache beside vLLM sees the GPUs of its server; a server of two GPUs gets the next two; too few is an error."""
    beside = QWEN.model_copy(update={"lmcache_mode": "mp", "gpus_per_server": 2})
    environ = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    data = json.loads(render(beside, CATALOGUE.tiers["cpu"], None, environ, as_json=True))
    seen = {c["name"]: c["env"].get("CUDA_VISIBLE_DEVICES") for c in data["components"]}
    assert seen == {"lmcache-0": "4,5", "vllm-0": "4,5", "lmcache-1": "6,7", "vllm-1": "6,7", "router": None}
    with pytest.raises(ConfigError, match=r"4 GPUs are needed .*, 2 allotted by CUDA_VISIBLE_DEVICES=4,5"):
        render(beside, CATALOGUE.tiers["cpu"], None, {"CUDA_VISIBLE_DEVICES": "4,5"}, as_json=True)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A driver that shows an A100 and an H100."""
    for bus, model, uuid in (
        ("0000:0a:00.0", "NVIDIA A100-SXM4-80GB", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"),
        ("0000:8b:00.0", "NVIDIA H100 80GB HBM3", "GPU-3c1f5b0e-0b5a-9d2e-7c11-6a1a4e0a3a11"),
    ):
        folder = tmp_path / "gpus" / bus
        folder.mkdir(parents=True)
        minor = 0 if "0a" in bus else 1
        text = f"Model: \t\t {model}\nIRQ:   \t\t 18\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n"
        (folder / "information").write_text(text)
    monkeypatch.setattr(hardware, "_DRIVER", tmp_path / "gpus")
    monkeypatch.setattr(hardware, "in_container", lambda: False)
    return tmp_path / "gpus"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (None, "NVIDIA A100-SXM4-80GB, NVIDIA H100 80GB HBM3"),
        ([], "none"),
        (["1"], "NVIDIA H100 80GB HBM3"),
        (["GPU-3c1f"], "NVIDIA H100 80GB HBM3"),
        (["GPU-3c1f", "0"], "NVIDIA H100 80GB HBM3, NVIDIA A100-SXM4-80GB"),
        (["7"], "none"),
    ],
)
@pytest.mark.usefixtures("cards")
def test_facts_of_the_gpus_in_use(names: list[str] | None, said: str) -> None:
    """What results are compared by names the GPUs that servers use, not those that others have."""
    assert hardware.hardware(names)["gpus"] == said


@pytest.mark.parametrize(
    ("names", "smi", "unique"),
    [
        (["1", "0"], False, ["GPU-3c1f5b0e-0b5a-9d2e-7c11-6a1a4e0a3a11", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"]),
        (["7"], False, ["7"]),
        (["GPU-3c1f"], False, ["GPU-3c1f"]),
        (["0", "GPU-8932"], True, ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"] * 2),
        (["MIG-a28ad590"], True, ["MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d"]),
    ],
)
@pytest.mark.usefixtures("cards")
def test_names_that_no_two_gpus_share(
    monkeypatch: pytest.MonkeyPatch, names: list[str], smi: bool, unique: list[str]
) -> None:
    """Numbers and abbreviations of UUIDs become whole UUIDs, so that two sessions call a GPU by one name."""
    monkeypatch.setattr(hardware, "_listing", lambda: list(listed(LISTING)) if smi else [])
    assert hardware.unique_names(names) == unique


def test_a_driver_that_hides_uuids(cards: Path) -> None:
    """The driver shows question marks until a GPU is used: the model is told where all are of one."""
    for path in cards.rglob("information"):
        text = path.read_text().replace("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3")
        path.write_text("\n".join(x if "UUID" not in x else "GPU UUID: GPU-????????" for x in text.splitlines()))
    assert hardware.models_of(["GPU-3c1f"]) == ["NVIDIA H100 80GB HBM3"]


@pytest.mark.usefixtures("cards")
def test_a_container_has_the_gpus_of_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc shows a container the GPUs of its host; those without a device node are not its own."""
    monkeypatch.setattr(hardware, "in_container", lambda: True)
    monkeypatch.setattr(hardware, "device_nodes", lambda: frozenset({1}))
    assert hardware.gpus() == ["NVIDIA H100 80GB HBM3"]


@pytest.mark.parametrize(
    ("value", "profile"),
    [(None, "qwen3-8b"), ("1", "qwen3-8b"), ("", "cpu-tiny"), ("-1", "cpu-tiny"), ("9", "cpu-tiny")],
)
@pytest.mark.usefixtures("cards")
def test_the_default_profile(value: str | None, profile: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The GPU profile is the default only where the caller may use a GPU that is here."""
    for name in (*allotments.VARIABLES, allotments.RUNTIME):
        monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    options = Options(
        rootdir=tmp_path,
        tiers=(),
        profile=None,
        engine=None,
        config=None,
        runs=tmp_path,
        baselines=tmp_path,
        update="none",
        boots=None,
        strict=False,
        against=None,
        image_mounts=(),
    )
    assert settings.resolve(options).profile.name == profile


def test_listings() -> None:
    """GPUs, instances and processes as nvidia-smi lists them."""
    found = list(listed(LISTING))
    assert [(each.index, each.profile) for each in found] == [("0", ""), ("0", "3g.40gb"), ("0", "1g.10gb"), ("1", "")]
    assert [each.is_named("MIG-a28a") for each in found] == [False, False, True, False]
    assert [each.is_named("0") for each in found] == [True, False, False, False]
    assert str(apps(APPS)[0]) == "python (pid 4711, 60000 MiB)"
    assert apps("GPU-1, 7, [Not Found], [N/A]\n")[0].memory_mib is None

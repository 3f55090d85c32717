"""Profiles and tiers as data: what is built in, what a kvcache.toml may say, and how it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.tiers.catalogue import Catalogue
from pytest_kvcache.workload.multi_round import MultiRoundQa


def load(tmp_path: Path, text: str) -> Catalogue:
    """Load a kvcache.toml with this text."""
    path = tmp_path / "kvcache.toml"
    path.write_text(text, encoding="utf-8")
    return catalogue.load(path)


def refusal(tmp_path: Path, text: str) -> str:
    """Return the message with which a kvcache.toml is refused."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value)


def test_the_articles_run_is_built_in() -> None:
    """The profile qwen3-8b has the reference run's parameters."""
    profile = catalogue.load(None).profile("qwen3-8b")
    workload = profile.workload
    assert (profile.model, profile.servers, profile.gpus_per_server) == ("Qwen/Qwen3-8B", 2, 1)
    assert isinstance(workload, MultiRoundQa)
    assert (workload.users, workload.rounds, workload.qps) == (15, 20, 2)
    assert (workload.shared_prompt_tokens, workload.answer_tokens, workload.duration_s) == (1000, 100, 1200)
    assert len(workload.context_tokens) > 1
    assert (profile.lmcache_mode, profile.l1_size_gb) == ("in-process", 100)


def test_built_in_tiers_in_their_order() -> None:
    """The four tiers are there without a file, the yardstick first."""
    assert list(catalogue.load(None).tiers) == ["gpu", "cpu", "s3", "pnfs"]


def test_a_new_tier_needs_no_code(tmp_path: Path) -> None:
    """Every kind can be added as a table."""
    known = load(
        tmp_path,
        """
        [tiers.nvme]
        kind = "fs"
        path = "/mnt/nvme"
        [tiers.minio]
        kind = "s3"
        endpoint = "https://minio:9000"
        bucket = "kv"
        [tiers.ram]
        kind = "cpu"
        [tiers.bare]
        kind = "none"
        [tiers.valkey]
        kind = "lmcache-l2"
        adapter = { type = "resp", host = "127.0.0.1", port = 6379 }
        """,
    )
    assert [t.name for t in known.select(["valkey", "nvme"])] == ["nvme", "valkey"]


def test_a_profile_can_change_single_keys(tmp_path: Path) -> None:
    """A table of a built-in profile's name changes what it names and keeps the rest."""
    profile = load(tmp_path, "[profiles.qwen3-8b.workload]\nqps = 3\n").profile("qwen3-8b")
    assert isinstance(profile.workload, MultiRoundQa)
    assert profile.workload.qps == 3
    assert profile.workload.users == 15


def test_a_profile_can_extend_another(tmp_path: Path) -> None:
    """`extends` starts a new profile from a known one."""
    text = '[profiles.mine]\nextends = "qwen3-8b"\nlmcache_mode = "mp"\n'
    profile = load(tmp_path, text).profile("mine")
    assert (profile.name, profile.model, profile.lmcache_mode) == ("mine", "Qwen/Qwen3-8B", "mp")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[tiers.x]\npath = '/a'\n", ["kvcache.toml: tiers.x.kind: missing; allowed:", "fs", "s3", "lmcache-l2"]),
        ("[tiers.x]\nkind = 'nfs'\n", ["tiers.x.kind: 'nfs' is not allowed; allowed:", "none", "cpu"]),
        ("[tiers.x]\nkind = 'fs'\npth = '/a'\n", ["tiers.x.pth: unknown key; allowed:", "path", "stand_in"]),
        ("[tiers.x]\nkind = 'fs'\nstand_in = 'no'\n", ["tiers.x.stand_in: 'no' is not allowed; allowed: 'never'"]),
        ("[tiers.x]\nkind = 's3'\nendpoint = 'http://h'\n", ["endpoint and bucket go together"]),
        (
            "[tiers.x]\nkind = 's3'\nendpoint = 'h:9'\nbucket = 'b'\n",
            ["tiers.x.endpoint", "write http(s)://host[:port]"],
        ),
        ("[tiers.x]\nkind = 's3'\nendpoint = 'http://u:p@h'\nbucket = 'b'\n", ["must not hold credentials"]),
        ("[tiers.x]\nkind = 'lmcache-l2'\nadapter = {host = 'h'}\n", ["tiers.x.adapter: needs a `type`"]),
        (
            "[tiers.x]\nkind = 'lmcache-l2'\nadapter = {type = 'resp', password = 'p'}\n",
            ["password would be readable in the process list"],
        ),
        ("[tiers.'my tier']\nkind = 'cpu'\n", ["tiers.my tier", "'my tier' cannot name a folder", "letters, digits"]),
        ("[tiers.'../x']\nkind = 'cpu'\n", ["'../x' cannot name a folder"]),
        ("[tiers.'']\nkind = 'cpu'\n", ["'' cannot name a folder"]),
        ("[profiles.'a b']\nextends = 'cpu-tiny'\n", ["profiles.a b", "'a b' cannot name a folder"]),
        (f"[profiles.{'x' * 101}]\nextends = 'cpu-tiny'\n", ["cannot name a folder"]),
        ("[profiles.cpu-tiny]\nserver = 3\n", ["profiles.cpu-tiny.server: unknown key; allowed:", "servers"]),
        ("[profiles.cpu-tiny.workload]\nqsp = 3\n", ["profiles.cpu-tiny.workload.qsp: unknown key; allowed:", "qps"]),
        ("[profiles.cpu-tiny.workload]\nqps = 'fast'\n", ["profiles.cpu-tiny.workload.qps:", "number"]),
        ("[profiles.cpu-tiny.workload]\nqps = -1\n", ["profiles.cpu-tiny.workload.qps:", "greater than 0"]),
        ("[profiles.cpu-tiny.workload]\nrounds = 1\n", ["profiles.cpu-tiny.workload.rounds:", "2"]),
        (
            "[profiles.x]\nextends = 'y'\n",
            ["profiles.x.extends: 'y' is not a profile; allowed: cpu-tiny, cpu-tiny-mp, cpu-article, cpu-nightly"],
        ),
        (
            "[profiles.cpu-tiny]\nlmcache_mode = 'both'\n",
            ["lmcache_mode: 'both' is not allowed; allowed: 'in-process'"],
        ),
        ("[tier.x]\n", ["unknown key 'tier'; allowed: profiles, tiers"]),
        ("tiers = 3\n", ["tiers: must be a table"]),
        ("[tiers]\nx = 3\n", ["tiers.x: must be a table"]),
        ("not toml", ["cannot be read"]),
    ],
)
def test_errors_name_file_key_and_what_is_allowed(tmp_path: Path, text: str, parts: list[str]) -> None:
    """Each kind of mistake is refused with the file, the key and the allowed values."""
    message = refusal(tmp_path, text)
    for part in ["kvcache.toml", *parts]:
        assert part in message


def test_all_mistakes_of_a_table_are_told_at_once(tmp_path: Path) -> None:
    """Two wrong keys of one table are two lines, not two runs."""
    message = refusal(tmp_path, "[profiles.cpu-tiny.workload]\nqps = -1\nusers = 0\n")
    assert "workload.qps" in message
    assert "workload.users" in message


def test_unknown_names_list_the_known_ones() -> None:
    """A profile or tier that does not exist is refused with those that do."""
    known = catalogue.load(None)
    with pytest.raises(
        ConfigError, match="unknown profile 'x'; known: cpu-tiny, cpu-tiny-mp, cpu-article, cpu-nightly, qwen3-8b"
    ):
        known.profile("x")
    with pytest.raises(ConfigError, match="unknown tier 'x'; known: gpu, cpu, s3, pnfs"):
        known.select(["gpu", "x"])


def test_the_file_is_found_from_rootdir(tmp_path: Path) -> None:
    """kvcache.toml of rootdir is used; without one, only what is built in."""
    assert catalogue.find(tmp_path) is None
    (tmp_path / "kvcache.toml").touch()
    assert catalogue.find(tmp_path) == tmp_path / "kvcache.toml"
    with pytest.raises(ConfigError, match="no such file"):
        catalogue.find(tmp_path, tmp_path / "other.toml")


def test_readings_that_are_not_taken_adjust_nothing(tmp_path: Path) -> None:
    """A profile that inherits `adjust_for` and reads no canary is judged without it."""
    text = '[profiles.mine]\nextends = "cpu-tiny"\n[profiles.mine.rules]\ncanary = {}\n'
    for canary, reading in (("true", "matmul_s"), ("false", "")):
        assert load(tmp_path, text.format(canary)).profile("mine").rules.policy().adjust_for == reading

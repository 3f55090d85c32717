"""Profiles and tiers as data: what is built in, what a kvcache.toml may say, and how it is refused."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.config.rules import Rules
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.tiers.base import TierModel
from pytest_kvcache.tiers.catalogue import Catalogue
from pytest_kvcache.tiers.cpu import CpuTier
from pytest_kvcache.tiers.fs import FsTier
from pytest_kvcache.tiers.l2 import L2Tier
from pytest_kvcache.tiers.none import NoTier
from pytest_kvcache.tiers.s3 import S3Tier
from pytest_kvcache.workload.mooncake import MooncakeTrace
from pytest_kvcache.workload.multi_round import MultiRoundQa
from pytest_kvcache.workload.sharegpt import ShareGpt


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


def test_a_profile_names_an_image(tmp_path: Path) -> None:
    """A name that Docker reads is taken as it is written; what is none is refused by its key."""
    pinned = f"registry.example.org:5000/vllm@sha256:{'0' * 64}"
    known = load(tmp_path, f'[profiles.p]\nextends = "cpu-tiny"\nimage = "{pinned}"\n')
    assert known.profile("p").image == pinned
    said = refusal(tmp_path, '[profiles.p]\nextends = "cpu-tiny"\nimage = "VLLM:latest"\n')
    assert "image" in said
    assert "'VLLM:latest' is no name of an image" in said


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
        (
            '[profiles.cpu-tiny.gates.gains."cpu over gpu"]\nttft = "x"\n',
            ["gpu.ttft: must be a number; or 'x' is not allowed; allowed: 'baseline'\n"],
        ),
        ("[profiles.cpu-tiny.gates]\ntokens = []\n", ["gates.tokens: Input should be a valid number; or [] is not"]),
        ("[profiles.cpu-tiny.gates]\ntokens = {a = 1}\n", ["gates.tokens: Input should be a valid number; or {'a'"]),
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
        ("[tiers.x]\nkind = ['fs']\n", ["tiers.x.kind: ['fs'] is not allowed; allowed:"]),
        ("[profiles.x]\nextends = ['x']\n", ["profiles.x.extends: ['x'] is not a profile"]),
        ("[tiers.cpu]\nname = 'gpu'\n", ["tiers.cpu.name: unknown key"]),
        ("[profiles.cpu-tiny]\nname = 'qwen3-8b'\n", ["profiles.cpu-tiny.name: unknown key"]),
        ("[profiles.cpu-tiny.workload]\nqps = inf\n", ["workload.qps", "finite"]),
        ("[profiles.cpu-tiny.workload]\nqps = nan\n", ["workload.qps", "finite"]),
        ("[profiles.cpu-tiny.workload]\nqps = true\n", ["workload.qps: must be a number, not true"]),
        ("[profiles.cpu-tiny.workload]\nqps = '3'\n", ["workload.qps: must be a number, not '3'"]),
        ("[profiles.cpu-tiny.workload]\ncontext_tokens = [true]\n", ["context_tokens: must be a number, not true"]),
        (
            "[profiles.cpu-tiny.rules]\nday_sds = {x = 0.1}\n",
            ["rules", "day_sds.x: unknown metric; allowed:"],
        ),
        ("[profiles.cpu-tiny.rules]\nprobes = 1\n", ["rules.probes: must be true or false, not 1"]),
        ("[profiles.cpu-tiny.rules]\nmargins = {tokens_per_s = true}\n", ["rules.margins: must be a number, not true"]),
        ("[profiles.cpu-tiny.workload]\nkind = 3\n", ["workload.kind: 3 is not allowed; allowed:"]),
        *(
            (f"[{table}]\n{text} = ' '\n", [f"{table}.{text}: must not be empty"])
            for table, text in [
                ("profiles.cpu-tiny", "model"),
                ("profiles.cpu-tiny", "dtype"),
                ("profiles.cpu-tiny", "launcher"),
                ("tiers.cpu", "launcher"),
                ("tiers.s3", "region"),
            ]
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


def test_an_unknown_name_says_which_file_was_read(tmp_path: Path) -> None:
    """Whose kvcache.toml was not found, or is not the one that was read, learns it with the unknown name."""
    with pytest.raises(ConfigError, match=r"\[profiles\.NAME\] table in kvcache\.toml, which was not found"):
        catalogue.load(None).profile("x")
    with pytest.raises(ConfigError, match=r"\[tiers\.NAME\] table in .*/kvcache\.toml$"):
        load(tmp_path, "").select(["x"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "cannot be read"),
        (b"[profiles.x]\x00\n", "cannot be read"),
        (b"x = " + b"[" * 3000 + b"]" * 3000, "cannot be read"),
        (b"x = " + b"1" * 5000, "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=["latin", "nul", "deep", "long", "folder"],
)
def test_what_is_no_toml(tmp_path: Path, content: bytes | None, said: str) -> None:
    """Whatever lies in the file's place is an error with its name."""
    path = tmp_path / "kvcache.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    gc.collect()  # what earlier tests left would be finalized at the depth of the recursion, and fail there
    with pytest.raises(ConfigError, match=said) as caught:
        catalogue.load(path)
    assert str(path) in str(caught.value)


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    """A file that an editor began with a byte order mark is read like any other."""
    path = tmp_path / "kvcache.toml"
    path.write_bytes(b"\xef\xbb\xbf[tiers.ram]\nkind = 'cpu'\n")
    assert "ram" in catalogue.load(path).tiers


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths that a person writes may begin with it, and a user who is not there is said."""
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "[tiers.x]\nkind = 'fs'\npath = '~/kv'\n[profiles.cpu-tiny]\nmodel = '~/m'\n"
    known = load(tmp_path, text)
    assert isinstance(known.tiers["x"], FsTier)
    assert (known.tiers["x"].path, known.profile("cpu-tiny").model) == (tmp_path / "kv", f"{tmp_path}/m")
    assert "tiers.x.path" in refusal(tmp_path, "[tiers.x]\nkind = 'fs'\npath = '~nobody-here/kv'\n")


_SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from(["", "fs", "gpu", "cpu-tiny", "~", "~nobody-here/x", "a b", "5", "inf", "\0", "--x"]),
    st.text(max_size=5),
    st.dates(),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_KINDS: dict[str, type[TierModel]] = {"fs": FsTier, "s3": S3Tier, "lmcache-l2": L2Tier, "cpu": CpuTier, "none": NoTier}
_TIER_KEYS = [(kind, key) for kind, model in _KINDS.items() for key in ("kind", "name", *model.model_fields)]
_PROFILE_KEYS = [
    *((key,) for key in ("extends", *Profile.model_fields)),
    *(("rules", key) for key in Rules.model_fields),
    *(("workload", key) for model in (MultiRoundQa, ShareGpt, MooncakeTrace) for key in model.model_fields),
]


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=500)
@given(st.sampled_from(_TIER_KEYS), _VALUES)
def test_no_value_of_a_tier_is_more_than_an_error(at: tuple[str, str], value: object) -> None:
    """Whatever stands at a key of a tier is taken, or refused with that key; a tier stays the tier of its name."""
    kind, key = at
    try:
        known = catalogue.laid_over({"tiers": {"x": {"kind": kind, key: value}}}, source=None, where="kvcache.toml")
    except ConfigError as error:
        assert "kvcache.toml: tiers.x" in str(error)  # noqa: PT017 - either is right
        return
    assert {name: tier.name for name, tier in known.tiers.items()} == {name: name for name in known.tiers}


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(st.sampled_from(_PROFILE_KEYS), st.sampled_from(["multi-round-qa", "sharegpt", "mooncake-trace"]), _VALUES)
def test_no_value_of_a_profile_is_more_than_an_error(at: tuple[str, ...], kind: str, value: object) -> None:
    """Whatever stands at a key of a profile, rules or workload is taken, or refused with the profile's name."""
    table: dict[str, object] = {"workload": {"kind": kind}} if at[0] != "workload" else {}
    table[at[0]] = value if len(at) == 1 else {"kind": kind, at[1]: value} if at[0] == "workload" else {at[1]: value}
    try:
        known = catalogue.laid_over({"profiles": {"cpu-tiny": table}}, source=None, where="kvcache.toml")
    except ConfigError as error:
        assert "kvcache.toml: profiles.cpu-" in str(error)  # noqa: PT017 - either is right
        return
    profile = known.profile("cpu-tiny")
    assert profile.name == "cpu-tiny"
    json.dumps(profile.model_dump(mode="json"), allow_nan=False)


def test_readings_that_are_not_taken_adjust_nothing(tmp_path: Path) -> None:
    """A profile that names `adjust_for` and reads no canary is judged without it."""
    text = '[profiles.mine]\nextends = "cpu-tiny"\n[profiles.mine.rules]\nadjust_for = "matmul_s"\ncanary = {}\n'
    for canary, reading in (("true", "matmul_s"), ("false", "")):
        assert load(tmp_path, text.format(canary)).profile("mine").policy.adjust_for == reading

"""How vLLM's arguments are read, and which of them a profile cannot give."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.config.cautions import cautions
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.config.refused_args import REFUSED, refusals
from pytest_kvcache.config.vllm_args import SHORT, key_of, kv_dtype, number_of, options, value_of
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.tiers import catalogue
from tests.unit.test_tiers import QWEN, TINY

NAMES = sorted({name for row in REFUSED if not row.values for name in row.names})


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--port", "8000"], "a port of its own"),
        (["--port=8000"], "a port of its own"),
        (["--po", "8000"], "--po (--port)"),
        (["--host", "0.0.0.0"], "127.0.0.1"),
        (["--uds=/tmp/x"], "a port of its own"),
        (["--served_model_name", "x"], "set model"),
        (["--model=x"], "set model"),
        (["Qwen/Qwen3-8B"], "the profile's key model"),
        (["--enforce-eager", "--", "x"], "ends the options"),
        (["--kv-transfer-config", "{}"], "the tier says"),
        (["--kv-transfer-config.kv_role=kv_both"], "the tier says"),
        (["--kv_transfer_config.kv_connector_extra_config.x", "1"], "the tier says"),
        (["--kv-transfer", "{}"], "--kv-transfer (--kv-transfer-config)"),
        (["--kv-offloading-size", "8"], "lmcache_mode"),
        (["--disable-log-stats"], "counters"),
        (["--no-enable-prompt-tokens-details"], "gets it already"),
        (["--no_enable_per_request_metrics"], "gets it already"),
        (["--no-disable-uvicorn-access-log"], "gets it already"),
        (["--response-role", "x"], "which one answered"),
        (["--api-key", "k"], "without a key"),
        (["--ssl-keyfile", "k"], "plain HTTP"),
        (["--root-path", "/x"], "own paths"),
        (["--dtype", "half"], "set dtype"),
        (["--max_model_len=1024"], "set max_model_len"),
        (["--num-gpu-blocks-override", "9"], "set device_blocks"),
        (["--config", "x.yaml"], "keys of the profile"),
        (["--headless"], "no server would answer"),
        (["-asc", "2"], "-asc (--api-server-count)"),
        (["-dp", "2"], "servers"),
        (["-dp=2"], "servers"),
        (["--data-parallel-size", "2"], "servers"),
        (["--data-parallel-size-local", "1"], "servers"),
        (["-dpl", "1"], "servers"),
        (["-n2"], "this machine alone"),
        (["--distributed-executor-backend", "ray"], "own processes"),
        (["--device-ids", "0"], "gpus_per_server"),
    ],
)
def test_what_a_profile_cannot_give(argv: list[str], said: str) -> None:
    """Whatever way it is spelled, what a plan writes or a run cannot work with is refused with what to use instead."""
    (line,) = refusals(["--enforce-eager", *argv] if argv[0].startswith("-") else argv)
    assert said in line


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--enforce-eager", "--gpu-memory-utilization", "0.1", "--max-num-seqs", "8"],
        ["-tp", "2", "-pp=1", "--data-parallel-size", "1"],
        ["--kv-cache-dtype", "fp8", "--block-size", "32", "--no-enable-prefix-caching"],
        ["--distributed-executor-backend", "mp"],
        ["--model-impl", "vllm", "--config-format", "auto", "--log-level", "debug"],
        ["--enable-log-requests", "--no-enable-chunked-prefill", "--seed", "-1"],
        ["--compilation-config.level=3", "-O3", "-cc", "{}", "--speculative-config", '{"method":"ngram"}'],
        ["--stub-ttft", "0.08", "--no-such-argument"],
    ],
)
def test_what_a_profile_may_give(argv: list[str]) -> None:
    """Everything else is vLLM's to judge."""
    assert list(refusals(argv)) == []


@given(st.sampled_from(NAMES), st.booleans(), st.booleans(), st.sampled_from(["", ".key"]), st.sampled_from(["", "+"]))
def test_every_spelling_of_a_refused_name(name: str, underscores: bool, equals: bool, path: str, plus: str) -> None:
    """Dashes or underscores, a value beside or behind, a dotted key: the same option."""
    word = f"--{name[2:].replace('-', '_')}" if underscores else name
    word += path + (plus if path else "")
    assert len(list(refusals([f"{word}=x"] if equals else [word, "x"]))) == 1


@given(st.lists(st.text(min_size=1, max_size=12), max_size=6))
def test_any_list_is_read(argv: list[str]) -> None:
    """No list of words is a mistake of the reader's."""
    assert len(list(options(argv))) <= len(argv)
    list(refusals(argv))


def test_values() -> None:
    """The last value counts, abbreviations and short names too; a JSON key is read in both forms."""
    assert value_of(["--block-size", "16", "--block_size=32"], "--block-size") == "32"
    assert value_of(["--block-s", "64"], "--block-size") == "64"
    assert number_of(["-tp", "4"], "--tensor-parallel-size", 1) == 4
    assert number_of(["--tensor-parallel-size"], "--tensor-parallel-size", 1) == 1
    assert value_of(["--kv-cache-dtype-skip-layers", "3"], "--kv-cache-dtype") is None
    assert key_of(['--cache-config={"cache_dtype": "fp8"}'], "--cache-config", "cache_dtype") == "fp8"
    assert key_of(["--cache-config", "no JSON"], "--cache-config", "cache_dtype") is None
    assert kv_dtype(["--cache_config.cache_dtype", "fp8_e4m3"]) == "fp8_e4m3"
    assert (kv_dtype(["--kv-cache-dtype=fp8"]), kv_dtype([])) == ("fp8", "auto")
    assert {"-tp", "-pp", "-dp"} <= set(SHORT.values())


def profile(tmp_path: Path, text: str) -> Profile:
    """Return a profile `p` that starts from the article's."""
    path = tmp_path / "kvcache.toml"
    path.write_text(f'[profiles.p]\nextends = "qwen3-8b"\n{text}', encoding="utf-8")
    return catalogue.load(path).profile("p")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('vllm_args = ["--port=1"]', "profiles.p.vllm_args: --port is not allowed"),
        ('[profiles.p.env]\nPYTHONHASHSEED = "1"', "profiles.p.env: PYTHONHASHSEED is not allowed: all servers"),
        ('vllm_args = ["-tp", "2"]', "gpus_per_server: 1, and vllm_args ask for 2"),
        ('gpus_per_server = 4\nvllm_args = ["-tp=2"]', "set gpus_per_server = 2"),
        ('gpus_per_server = 2\nvllm_args = ["--tensor_parallel_size", "2", "-pp", "2"]', "set gpus_per_server = 4"),
        (
            'chunk_tokens = 100\nvllm_args = ["--block-size", "64"]',
            "chunk_tokens: 100 is no whole number of blocks of 64",
        ),
        ('vllm_args = ["--max-logprobs", "3"]', "vllm_args: --max-logprobs 3 is not allowed"),
    ],
)
def test_refused_when_the_file_is_read(tmp_path: Path, text: str, said: str) -> None:
    """Before anything boots, with file and key."""
    with pytest.raises(ConfigError) as caught:
        profile(tmp_path, text)
    assert "kvcache.toml: profiles.p" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "ranks", "rendered"),
    [
        ("", 1, ()),
        ("gpus_per_server = 2", 2, ("--tensor-parallel-size", "2")),
        ('gpus_per_server = 4\nvllm_args = ["-tp", "2", "--pipeline-parallel-size=2"]', 4, ()),
        ('gpus_per_server = 0\nvllm_args = ["-tp", "2"]', 2, ()),
        ('vllm_args = ["--max-logprobs", "3"]\n[profiles.p.rules]\nprobes = false', 1, ()),
    ],
)
def test_workers_of_a_server(tmp_path: Path, text: str, ranks: int, rendered: tuple[str, ...]) -> None:
    """A server uses all of its GPUs unless the sizes are written; on CPUs any number of workers is right."""
    made = profile(tmp_path, text)
    assert (made.ranks, made.tensor_parallel_args) == (ranks, rendered)


@pytest.mark.parametrize(
    ("text", "offloads", "said"),
    [
        ("", True, None),
        ("chunk_tokens = 100", True, "blocks, 16 tokens"),
        ("chunk_tokens = 100", False, None),
        ('chunk_tokens = 96\nvllm_args = ["--block-size", "32"]', True, None),
        ("gpus_per_server = 0\nchunk_tokens = 64", True, "blocks, 128 tokens"),
        ('vllm_args = ["--kv-cache-dtype", "fp8_e4m3"]', False, "kept as fp8_e4m3"),
        ('vllm_args = ["--kv-cache-dtype=nvfp4"]', True, "rules.logprob_tolerance (0.25)"),
        ('vllm_args = ["--kv-cache-dtype", "bfloat16"]', True, None),
        ('vllm_args = ["--kv-cache-dtype=fp8"]\n[profiles.p.rules]\nlogprob_tolerance = 2', True, None),
        ('vllm_args = ["--kv-cache-dtype=fp8"]\n[profiles.p.rules]\nprobes = false', True, None),
    ],
)
def test_what_is_told_before_a_boot(tmp_path: Path, text: str, offloads: bool, said: str | None) -> None:
    """Chunks that cut blocks of vLLM's usual size, and KV formats that change answers, unless they were decided on."""
    found = cautions(profile(tmp_path, text), offloads=offloads)
    assert [said in line for line in found if said] == ([True] if said else [])
    assert bool(found) == bool(said)


def test_built_in_profiles_have_nothing_to_tell() -> None:
    """Ours are as they should be."""
    assert cautions(TINY, offloads=True) + cautions(QWEN, offloads=True) == []

"""Flags of `pytest-kvcache load`: those that say nothing to a kind of workload are refused, by the kind's own table."""

from __future__ import annotations

import argparse
import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_kvcache.commands import load
from pytest_kvcache.errors import ConfigError, RunError
from pytest_kvcache.runs.files import replace_whole
from pytest_kvcache.tiers.catalogue import validate
from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.mooncake import MooncakeTrace
from pytest_kvcache.workload.multi_round import MultiRoundQa
from pytest_kvcache.workload.sharegpt import ShareGpt
from pytest_kvcache.workload.tokens import ServedTokenizer
from tests.unit.test_exact import Words

#: What each kind is chosen by, with the flags that it needs.
KINDS: dict[type[Workload], dict[str, str]] = {
    MultiRoundQa: {"--num-users": "3", "--num-rounds": "4", "--qps": "2"},
    ShareGpt: {"--sharegpt": "s.json", "--num-users": "3", "--num-rounds": "4", "--qps": "2"},
    MooncakeTrace: {"--trace": "t.jsonl"},
}
NEEDED = {"--user-history-prompt": "40", "--time": "9", "--base-url": "http://h/v1", "--model": "m"}
#: Flags of what is sent, each with a value and the key that it sets in the kinds that have it.
FLAGS: dict[str, tuple[str, str, set[type[Workload]]]] = {
    "--num-users": ("5", "users", {MultiRoundQa, ShareGpt}),
    "--num-rounds": ("6", "rounds", {MultiRoundQa, ShareGpt}),
    "--qps": ("7.5", "qps", {MultiRoundQa, ShareGpt}),
    "--answer-len": ("8", "answer_tokens", {MultiRoundQa, ShareGpt}),
    "--shared-system-prompt": ("0", "shared_prompt_tokens", {MultiRoundQa}),
    "--mode": ("compat", "mode", {MultiRoundQa}),
    "--seed": ("0", "seed", {MultiRoundQa, MooncakeTrace}),
    "--speed": ("2.0", "speed", {MooncakeTrace}),
    "--block-tokens": ("16", "block_tokens", {MooncakeTrace}),
    "--time-unit": ("s", "time_unit", {MooncakeTrace}),
    "--trace-format": ("dynamo-delta", "trace_format", {MooncakeTrace}),
    "--concurrency": ("4", "concurrency", {MooncakeTrace}),
    "--warmup-requests": ("0", "warmup_requests", set(KINDS)),
}


def made(flags: dict[str, str]) -> Workload:
    """Return the workload that a command line describes."""
    parser = argparse.ArgumentParser()
    load.add_arguments(parser)
    return load._workload(parser.parse_args([part for pair in flags.items() for part in pair]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_sets_its_key_or_is_refused(kind: type[Workload], flag: str) -> None:
    """Each flag of what is sent sets the key of a kind that has it; to another kind it says nothing."""
    value, key, kinds = FLAGS[flag]
    flags = {**NEEDED, **KINDS[kind], flag: value}
    if kind in kinds:
        workload = made(flags)
        assert type(workload) is kind
        assert str(getattr(workload, key)) == value
    else:
        with pytest.raises(ConfigError, match=f"^{flag}: says nothing to .*, which has its own\n  -> leave it out$"):
            made(flags)


def test_all_flags_of_what_is_sent_are_in_the_table() -> None:
    """No flag that a kind declares is missing in the table of this file, and each is a flag of the command."""
    parser = argparse.ArgumentParser()
    load.add_arguments(parser)
    known = vars(parser.parse_args([part for pair in NEEDED.items() for part in pair]))
    declared = {flag for kind in KINDS for flag in kind.FLAGS}
    assert declared <= set(known)
    names = {f"--{flag.replace('_', '-')}" for flag in declared} - {"--sharegpt", "--trace", "--init-user-id"}
    assert names == set(FLAGS)
    for kind in KINDS:
        assert set(kind.FLAGS.values()) <= set(kind.model_fields)


def test_all_wrong_flags_are_named() -> None:
    """Several flags that say nothing are named at once."""
    with pytest.raises(ConfigError) as error:
        made({**NEEDED, "--trace": "t", "--num-users": "1", "--qps": "2", "--answer-len": "3"})
    assert str(error.value).splitlines() == [
        "--num-users: says nothing to --trace, which has its own",
        "  -> leave it out, and --qps, --answer-len too",
    ]


@pytest.mark.parametrize(("flag", "value"), [("--seed", "0"), ("--seed", "1"), ("--tokenizer-url", "http://h")])
def test_what_mode_compat_does_not_use(flag: str, value: str) -> None:
    """Mode compat sends what the original sends, which depends on no seed, and counts nothing."""
    made({**NEEDED, **KINDS[MultiRoundQa], flag: value})
    with pytest.raises(ConfigError, match=rf"^{flag}: says nothing to --mode compat: |seed says nothing in mode"):
        made({**NEEDED, **KINDS[MultiRoundQa], "--mode": "compat", flag: value})


@pytest.mark.parametrize("value", ["1", "2"])
def test_what_a_concurrency_does_not_use(value: str) -> None:
    """With a concurrency the times of a trace do not hold, so that a speed says nothing, in the file as well."""
    flags = {**NEEDED, **KINDS[MooncakeTrace], "--concurrency": "4"}
    made(flags)
    with pytest.raises(ConfigError, match=r"speed.*says nothing (to --concurrency|beside concurrency)"):
        made({**flags, "--speed": value})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", ["0", "3", "12"])
def test_every_kind_warms_up(tmp_path: Path, kind: type[Workload], count: str) -> None:
    """`--warmup-requests` is sent for each kind of workload, and 0 sends none."""
    talk = {"messages": [{"role": ("user", "assistant")[i % 2], "content": f"{i}"} for i in range(8)]}
    row = {"timestamp": 0, "input_length": 20, "output_length": 1, "hash_ids": [1]}
    path = tmp_path / "file"
    path.write_text("\n".join([json.dumps(talk if kind is ShareGpt else row)] * 30), encoding="utf-8")
    flags = {**NEEDED, **KINDS[kind], "--warmup-requests": count}
    flags |= {flag: str(path) for flag in ("--sharegpt", "--trace") if flag in flags}
    assert len(made(flags).script(40, Words()).warm_up) == int(count)


def test_users_of_another_load_have_other_conversations() -> None:
    """`--init-user-id` passes over the conversations that earlier users have, so that two loads share none."""
    workload = made({**NEEDED, **KINDS[ShareGpt], "--init-user-id": "20"})
    assert isinstance(workload, ShareGpt)
    assert workload.skip_conversations == 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "flag", [*FLAGS, "--time", "--user-history-prompt", "--workers", "--request-timeout", "--token-timeout"]
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "-1", "1e300", "9" * 30])
def test_figures_that_are_none(kind: type[Workload], flag: str, value: str) -> None:
    """A figure that is no number, or that no run can have, is refused before anything is sent."""
    if (flag, value) in {("--seed", "-1"), ("--speed", "1e300"), ("--speed", "9" * 30)}:
        return  # a seed may be any whole number, and a trace may be sent at once
    with pytest.raises((ConfigError, SystemExit)):
        made({**NEEDED, **KINDS[kind], flag: value})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["1e999", "-1e999", "inf", "nan", "true", "'5'"])
def test_figures_of_the_configuration_that_are_none(tmp_path: Path, kind: type[Workload], value: str) -> None:
    """So are those of kvcache.toml, in each key of each kind that takes a number, with the key's name."""
    good = made({**NEEDED, **KINDS[kind]}).model_dump(mode="json", exclude_none=True, exclude_unset=True)
    fields = {name: field.annotation for name, field in kind.model_fields.items()}
    numbers = [name for name, of in fields.items() if re.search(r"\b(int|float)\b", str(of)) or of in {int, float}]
    assert {"duration_s", "warmup_requests", "send_late_budget_s", "context_tokens"} <= set(numbers)
    for name in numbers:
        said = tomllib.loads(f"x = {value}")["x"]
        with pytest.raises(ConfigError, match=rf"^x\.{name}"):
            validate(kind, {**good, name: [said] if name == "context_tokens" else said}, "x")


@pytest.mark.parametrize(
    ("flag", "value"), [("--init-user-id", "-1"), ("--init-user-id", "9" * 30), ("--log-interval", "0")]
)
def test_bounds_of_the_other_figures(flag: str, value: str) -> None:
    """Figures that are no key of a workload have bounds too, and their errors name the flag."""
    with pytest.raises(ConfigError, match=f"^{flag}: must be from "):
        made({**NEEDED, **KINDS[MultiRoundQa], flag: value})


@pytest.mark.parametrize("kind", KINDS)
def test_compat_is_offered_where_there_is_such_a_mode(kind: type[Workload]) -> None:
    """A server without vLLM's tokenizer API is told of with mode compat only for the kind that has it."""
    tokenizer = ServedTokenizer("http://127.0.0.1:9", "m", compat_helps=kind.HAS_COMPAT)
    with pytest.raises(RunError) as error:
        tokenizer.count([])
    assert ("compat" in str(error.value)) == (kind is MultiRoundQa)
    assert ("mode" in kind.model_fields) == kind.HAS_COMPAT


@pytest.mark.parametrize("mode", ["exact", "compat"])
def test_warm_up_requests_of_the_multi_round_workload(mode: str) -> None:
    """`--warmup-requests` holds in both modes, as for files."""
    workload = made({**NEEDED, **KINDS[MultiRoundQa], "--mode": mode, "--warmup-requests": "3"})
    assert len(workload.script(40, Words()).warm_up) == 3


def test_prompts_longer_than_the_model_takes_are_not_made() -> None:
    """The model's length is held against the longest prompt and its answer before texts of any size are made."""
    workload = made({**NEEDED, **KINDS[MultiRoundQa], "--answer-len": str(10**12)})
    with pytest.raises(RunError, match=r"longest prompt with its answer has \d+ tokens, the model takes 32768"):
        workload.script(40, Words(max_model_len=32768))


@pytest.mark.parametrize("kind", [ShareGpt, MooncakeTrace])
def test_a_byte_order_mark_in_a_workload_file(tmp_path: Path, kind: type[Workload]) -> None:
    """Files that an editor began with a byte order mark are read as if there were none."""
    talk = {"messages": [{"role": ("user", "assistant")[i % 2], "content": f"{i}"} for i in range(8)]}
    row = {"timestamp": 0, "input_length": 20, "output_length": 1, "hash_ids": [1]}
    path = tmp_path / "file"
    path.write_text("\ufeff" + "\n".join([json.dumps(talk if kind is ShareGpt else row)] * 30), encoding="utf-8")
    flag = "--sharegpt" if kind is ShareGpt else "--trace"
    workload = made({**NEEDED, **KINDS[kind], flag: str(path)})
    workload.check()
    assert workload.script(40, Words()).conversations


@pytest.mark.parametrize(
    ("name", "there", "message"),
    [
        ("rows.csv", os.mkfifo, "rows.csv is no regular file"),
        ("rows.csv", os.mkdir, "rows.csv is a folder"),
        ("rows.parquet", os.mkdir, "rows.parquet is a folder"),
        ("rows.json", os.mkdir, "rows.json is a folder"),
        ("rows.json", os.mkfifo, "rows.json is no regular file"),
        ("rows.csv.partial", os.mkdir, "Is a directory"),
    ],
)
def test_what_stands_where_results_go(tmp_path: Path, name: str, there: Callable[[Path], None], message: str) -> None:
    """A folder or a device in the place of any of the three files is found before the run, and left as it is."""
    there(tmp_path / name)
    mode = (tmp_path / name).stat().st_mode
    with pytest.raises((ConfigError, OSError), match=message):
        load._check_output(tmp_path / "rows.csv")
    assert (tmp_path / name).stat().st_mode == mode


@pytest.mark.parametrize("length", [*range(236, 252, 2), 300])
def test_names_of_results_that_are_too_long(tmp_path: Path, length: int) -> None:
    """A name whose rows or facts could not be written is refused before the run; others leave nothing behind."""
    output = tmp_path / f"{'x' * (length - 4)}.csv"
    try:
        load._check_output(output)
    except OSError:
        assert length > 240
        return
    for path in (output, output.with_suffix(".parquet"), output.with_suffix(".json")):
        replace_whole(path, lambda partial: partial.write_text("rows"))

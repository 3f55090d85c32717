"""The options that the plugin reads and refuses, held against vLLM's own parser."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pytest_kvcache.config.refused_args import REFUSED, refusals
from pytest_kvcache.config.vllm_args import SHORT, options

#: In the engine environment: every option of the server, each with its spellings.
LIST = """
import json
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
print("RESULT", json.dumps([a.option_strings for a in make_arg_parser(FlexibleArgumentParser())._actions]))
"""
#: Of other versions or of `vllm` itself.
ELSEWHERE = {"--version"}


@pytest.fixture(scope="module")
def spellings(real_engine: Path) -> list[list[str]]:
    """Spellings of every option of the engine environment's vLLM."""
    argv = [str(real_engine / "bin" / "python"), "-c", LIST]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[list[str]] = json.loads(done.stdout.partition("RESULT ")[2])
    return found


def test_refused_options_are_vllms(spellings: list[list[str]]) -> None:
    """Every option that is refused, and every short name, is one of vLLM's: a renamed one shows here."""
    known = {name for names in spellings for name in names}
    assert {name for row in REFUSED for name in row.names} - known == ELSEWHERE
    shorts = {
        long: short for names in spellings for long in names for short in names if long in SHORT and short[1] != "-"
    }
    assert shorts == SHORT


def test_no_other_option_is_taken_for_a_refused_one(spellings: list[list[str]]) -> None:
    """Whole names of all other options of vLLM are free, though some of them begin like refused ones."""
    refused = {name for row in REFUSED for name in row.names} | {
        "--data-parallel-size",
        "--distributed-executor-backend",
    }
    free = [names for names in spellings if names and not refused & set(names)]
    words = [name for names in free for name in names if name.startswith("--") or name not in {"-h"}]
    assert [word for word in words if list(refusals([word, "x"]))] == []
    assert [option.name for word in words for option in options([word])] == words

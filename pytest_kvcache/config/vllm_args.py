"""How vLLM reads its argument list: the one place that knows its spellings.

From vLLM 0.32, `vllm/utils/argparse_utils.py`: `_` stands for `-` in a name, `--name=value` for `--name value`,
`--name.key value` for a key of a JSON value, `--no-name` for the opposite of a switch, and argparse takes any
beginning of a name that is the beginning of no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: Short names of the options that the product reads or refuses (`EngineArgs.add_cli_args`).
SHORT = {
    "--api-server-count": "-asc",
    "--data-parallel-address": "-dpa",
    "--data-parallel-backend": "-dpb",
    "--data-parallel-external-lb": "-dpe",
    "--data-parallel-hybrid-lb": "-dph",
    "--data-parallel-multi-port-external-lb": "-dpm",
    "--data-parallel-rank": "-dpn",
    "--data-parallel-rpc-port": "-dpp",
    "--data-parallel-size": "-dp",
    "--data-parallel-size-local": "-dpl",
    "--data-parallel-start-rank": "-dpr",
    "--help": "-h",
    "--nnodes": "-n",
    "--node-rank": "-r",
    "--pipeline-parallel-size": "-pp",
    "--prefill-context-parallel-size": "-pcp",
    "--tensor-parallel-size": "-tp",
}
#: Names that are whole although another one begins with them.
_WHOLE = frozenset({"--config", "--data-parallel-size", "--grpc", "--kv-cache-dtype", "--model", "-dc", "-dp"})
_NUMBER = re.compile(r"-\d+(\.\d+)?$")


@dataclass(frozen=True)
class Option:
    """An option of an argument list.

    Args:
        written: As it is there, without its value.
        name: With dashes and without what follows a dot (`--kv-transfer-config`).
        path: Keys of the JSON value that it sets, where it was written with dots.
        value: None where it has none.
    """

    written: str
    name: str
    path: tuple[str, ...] = ()
    value: str | None = None

    def means(self, option: str) -> bool:
        """Whether vLLM may read it as `option`, which is a long name: written out, short, or abbreviated."""
        if self.name in {option, SHORT.get(option)}:
            return True
        if self.name in _WHOLE:
            return False
        wanted = option if self.name.startswith("--") else SHORT.get(option, "")
        # One letter takes its value without a space (`-n2`).
        return wanted.startswith(self.name) or (len(wanted) == 2 and self.name.startswith(wanted))

    def negates(self, option: str) -> bool:
        """Whether it is the `--no-` form of a switch."""
        opposite = f"--no-{option.removeprefix('--')}"
        return self.name.startswith("--no-") and opposite.startswith(self.name) and len(self.name) > len("--no-")


def options(argv: Sequence[str]) -> Iterator[Option]:
    """Return the options of an argument list in their order, each with the first of its values."""
    for index, word in enumerate(argv):
        if word == "--":
            return
        if not is_option(word):
            continue
        written, equals, value = word.partition("=")
        following = argv[index + 1] if index + 1 < len(argv) and not is_option(argv[index + 1]) else None
        name, *path = written.removesuffix("+").split(".") if written.startswith("--") else [written]
        dashed = name.replace("_", "-") if name.startswith("--") else name
        yield Option(written, dashed, tuple(path), value if equals else following)


def is_option(word: str) -> bool:
    """Whether a word of an argument list is an option, and neither a value nor a number below zero."""
    return word.startswith("-") and len(word) > 1 and not _NUMBER.match(word)


def value_of(argv: Sequence[str], option: str) -> str | None:
    """Return the value of `option`, the last one where it is there more than once; None where it is not there."""
    found = [each.value for each in options(argv) if each.means(option) and not each.path]
    return found[-1] if found else None


def number_of(argv: Sequence[str], option: str, default: int) -> int:
    """Return the value of `option` as a whole number, `default` where it is not there or is none."""
    text = value_of(argv, option)
    return int(text) if text is not None and text.isdecimal() else default


def key_of(argv: Sequence[str], option: str, key: str) -> str | None:
    """Return `key` of the JSON value of `option`, be it written as JSON or with a dot; None where it is not there."""
    found: str | None = None
    for each in options(argv):
        if not each.means(option):
            continue
        if each.path == (key,):
            found = each.value
        elif not each.path and each.value:
            try:
                data = json.loads(each.value)
            except ValueError:
                continue
            if isinstance(data, dict) and key in data:
                found = str(data[key])
    return found


def kv_dtype(argv: Sequence[str]) -> str:
    """Return the number format of the KV cache that is asked for, `auto` where none is."""
    return value_of(argv, "--kv-cache-dtype") or key_of(argv, "--cache-config", "cache_dtype") or "auto"

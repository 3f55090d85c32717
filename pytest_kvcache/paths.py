"""Paths as people write them: in options, ini keys, environment variables and kvcache.toml alike."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


def expanded(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return a path with the home folder for a leading `~` or `~user`, and values for `$NAME` and `${NAME}`.

    A shell does neither in an ini file or in kvcache.toml, and `~` after `=` in no file and on no command line.

    Args:
        text: As it was written; it may be relative.
        environ: Has the variables; this process's by default.

    Raises:
        ValueError: It is empty, there is no such user or variable, or no path can have such a character.
    """
    variables = os.environ if environ is None else environ

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not variables.get(name):
            raise ValueError(f"{text!r}: the environment variable {name} is not set")
        return variables[name]

    if not text.strip():
        raise ValueError("an empty text is no path")
    try:
        path = _VARIABLE.sub(value, str(Path(text).expanduser()) if text.startswith("~") else text)
    except RuntimeError:
        raise ValueError(f"{text!r}: there is no such user's home folder") from None
    if "\0" in path:
        raise ValueError(f"{text!r} is no path: it has a NUL")
    return path


def argument(text: str) -> Path:
    """Return the path that is given to an option of a subcommand: a `type` for argparse.

    Raises:
        ArgumentTypeError: As `expanded` says.
    """
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

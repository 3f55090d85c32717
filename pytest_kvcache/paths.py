"""Expands paths as people write them in options, ini keys, environment variables and kvcache.toml."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


def expanded(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return a path with the home folder for a leading `~` or `~user`, and values for `$NAME` and `${NAME}`.

    No shell expands `~` and variables in an ini file or in kvcache.toml, nor the `~` of `--option=~/folder`.

    Args:
        text: The path as a person wrote it; it may be relative.
        environ: The environment variables, by default those of this process.

    Raises:
        ValueError: The text is empty, names an unknown user or variable, or has a character that no path can have.
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
    """Return the path that a person gives to an option of a subcommand; this is a `type` for argparse.

    Raises:
        ArgumentTypeError: `expanded` refuses the text.
    """
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

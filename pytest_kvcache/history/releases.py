"""The releases of a package between two of its versions, as pip finds them or as they are named."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence

from packaging.version import InvalidVersion, Version

from pytest_kvcache.errors import ConfigError, SetupError

#: How long pip may take to ask (s): its own retries end within this time.
_PIP_S = 180
_LINE = re.compile(r"^Available versions:(.*)$", re.MULTILINE)


def between(good: str, bad: str, named: Sequence[str]) -> tuple[str, ...]:
    """Return versions from `good` to `bad`, oldest first; these two as they are written here, and each version once.

    Args:
        good: The oldest.
        bad: The newest.
        named: Any versions; those outside are left out.

    Raises:
        ConfigError: A text is no version, or `bad` is not newer than `good`.
    """
    first, last = _version(good, "--good"), _version(bad, "--bad")
    if not first < last:
        raise ConfigError(f"must be newer than --good {good}, not {bad}", where="--bad")
    inside = {version: text for text in named if first < (version := _version(text, "--versions")) < last}
    return (good, *(inside[version] for version in sorted(inside)), bad)


def released(distribution: str) -> list[str]:
    """Return the versions of a distribution that pip can install here; without pre-releases and yanked ones.

    Raises:
        SetupError: pip is not there, or does not find the distribution.
    """
    argv = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", distribution]
    todo = "name the releases to try with --versions"
    try:
        done = subprocess.run(
            argv, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=_PIP_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"pip cannot be asked for releases: {error}", where=distribution, todo=todo) from None
    found = _LINE.search(done.stdout)
    if done.returncode != 0 or found is None:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        cause = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no output")
        raise SetupError(f"pip finds no releases: {cause:.300}", where=distribution, todo=todo)
    return [text.strip() for text in found[1].split(",") if text.strip()]


def same(one: str, other: str) -> bool:
    """Return whether two texts are the same release; the local part, such as `+cu129`, is of the build."""
    try:
        return Version(one).public == Version(other).public
    except InvalidVersion:
        return one == other


def _version(text: str, where: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        raise ConfigError(
            f"{text!r:.60} is no version", where=where, todo="write it as pip does, such as 0.5.6"
        ) from None

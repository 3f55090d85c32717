"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kvcache.patience import NoAnswerError, within

#: Longest time to remove a folder on storage that may be dead (s).
_PATIENCE_S = 60.0


def partial_of(path: Path) -> Path:
    """Return where a file is made before it takes its place."""
    return path.with_name(f"{path.name}.partial")


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file beside `path`, then move it to `path`; on an error nothing is left or changed.

    Raises:
        OSError: The file could not be written.
    """
    partial = partial_of(path)
    try:
        write(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Removal:
    """What came of removing a folder.

    Args:
        was_there: Whether it was there.
        kept: Why it is there still, "" where it is gone.
    """

    was_there: bool
    kept: str = ""


def remove_tree(folder: Path, *, limit_s: float = _PATIENCE_S) -> Removal:
    """Remove a folder, which may be on a mount whose server is dead; wait `limit_s` (s) for it."""

    def remove() -> Removal:
        was_there = folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
        return Removal(was_there, "is its file system read-only?" if folder.exists() else "")

    try:
        return within(limit_s, remove, name="remove")
    except NoAnswerError as error:
        return Removal(True, f"its file system gave {error.strerror}.")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole."""
    replace_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` to `path` as JSON, whole."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True))

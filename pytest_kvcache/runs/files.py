"""Files that are there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


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


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole."""
    replace_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` to `path` as JSON, whole."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True))

"""Fetches the images of a session before anything boots, with progress; only where --kv-pull asks for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from pytest_kvcache.campaign.settings import Settings
from pytest_kvcache.config.image_reference import parse_reference
from pytest_kvcache.engine import image
from pytest_kvcache.engine.image import LocalImage
from pytest_kvcache.engine.pull import Pulled, pull
from pytest_kvcache.report.progress import CalmLine, is_live
from pytest_kvcache.showable import showable

Say = Callable[[str], None]


def pull_images(settings: Settings, stream: TextIO | None, say: Say, *, verbosity: int) -> None:
    """Fetch what `--kv-pull` asks for, and say for each image what came, and whether its tag has moved.

    Args:
        settings: The checked configuration.
        stream: pytest's terminal, None without one.
        say: Writes a line.
        verbosity: Of pytest; below 0 only what came is said.

    Raises:
        ConfigError: An image cannot be fetched.
    """
    mode = settings.options.pull
    if mode == "never":
        return
    for text in settings.images:
        where = f"{image.PREFIX}{text}"
        reference = parse_reference(text, where=where)
        before = image.find(text)
        if before is not None and (mode == "missing" or reference.is_pinned):
            continue
        began_s = time.monotonic()
        with _shown(text, stream, say, quiet=verbosity < 0) as told:
            pull(reference, told, where=where)
        say(_came(text, before, image.check(text), time.monotonic() - began_s))


def _came(text: str, before: LocalImage | None, after: LocalImage, took_s: float) -> str:
    now = after.digest or after.id
    if before is None:
        return f"pulled {text} in {took_s:.0f} s: {now}"
    if before.id == after.id:
        return f"{text} is up to date: {now}"
    pin = f"; to keep to one image, name it {parse_reference(text, where='').name}@{now}" if after.digest else ""
    return f"{text} has moved: it was {before.digest or before.id}, and is {now} now ({took_s:.0f} s){pin}"


@contextlib.contextmanager
def _shown(text: str, stream: TextIO | None, say: Say, *, quiet: bool) -> Iterator[Callable[[Pulled], None]]:
    """Yield what shows progress: a bar on a terminal, a line every half minute in a log."""
    if stream is None or quiet or not is_live(stream):
        calm = CalmLine(say)
        calm.show(f"pulling {text}", at_once=True)
        yield lambda pulled: None if quiet else calm.show(f"pulling {text}: {pulled}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    stream.write("\n")
    with Progress(*columns, console=Console(file=stream, highlight=False), transient=True) as progress:
        task = progress.add_task(f"pulling {showable(text, stream)}", total=None)

        def told(pulled: Pulled) -> None:
            layers = f" ({pulled.done} of {pulled.layers} layers)" if pulled.layers else ""
            progress.update(
                task,
                description=f"pulling {showable(text, stream)}{layers}",
                completed=pulled.fetched_bytes,
                total=pulled.total_bytes or None,
            )

        yield told

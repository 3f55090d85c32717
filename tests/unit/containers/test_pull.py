"""Images are fetched only where --kv-pull asks for it; how far it is and what came is said."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest

from pytest_kvcache.campaign.settings import Settings
from pytest_kvcache.config.options import PullMode
from pytest_kvcache.engine.pull import Pulled, PullProgress
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.report import pulling
from tests.stubs.docker import StubDocker

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


class _Options:
    def __init__(self, pull: PullMode) -> None:
        self.pull = pull


class _Settings:
    def __init__(self, pull: PullMode, *images: str) -> None:
        self.options, self.images = _Options(pull), images


def settings_of(mode: str, *images: str) -> object:
    """Return what of a session's settings a pull looks at."""
    return _Settings(cast("PullMode", mode), *images)


def pulled(mode: PullMode, *images: str, stream: io.StringIO | None = None, verbosity: int = 0) -> list[str]:
    """Fetch images as a session does; return what was said."""
    said: list[str] = []
    settings = cast("Settings", settings_of(mode, *images))
    pulling.pull_images(settings, stream or io.StringIO(), said.append, verbosity=verbosity)
    return said


def test_nothing_is_pulled_unasked(daemon: StubDocker) -> None:
    """Without --kv-pull no registry is asked, whether the image is there or not."""
    assert pulled("never", "kv:1", "kv:2") == []
    assert daemon.pulled == []


def test_a_missing_image(daemon: StubDocker) -> None:
    """It is pulled once, with a line before and one after that has its digest; one that is there is left alone."""
    daemon.registry, daemon.digests = {"kv:2": "sha256:2"}, {"sha256:2": [f"kv@{B}"]}
    said = pulled("missing", "kv:1", "kv:2")
    assert said[0] == "pulling kv:2"
    assert said[-1].startswith("pulled kv:2 in ")
    assert said[-1].endswith(f" s: {B}")
    assert daemon.pulled == ["kv:2"]
    assert pulled("missing", "kv:2") == []


def test_a_tag_that_moved(daemon: StubDocker) -> None:
    """`always` asks the registry, and says from which digest to which a tag has moved, and how to stay with one."""
    daemon.registry, daemon.digests = {"kv:1": "sha256:9"}, {"sha256:1": [f"kv@{A}"], "sha256:9": [f"kv@{B}"]}
    (_, line) = pulled("always", "kv:1")
    assert line.startswith(f"kv:1 has moved: it was {A}, and is {B} now (")
    assert line.endswith(f"name it kv@{B}")
    (_, line) = pulled("always", "kv:1")
    assert line == f"kv:1 is up to date: {B}"


def test_a_pinned_image_needs_no_registry(daemon: StubDocker) -> None:
    """A digest cannot move: once it is there, nothing is asked. One that is not there is pulled by its digest."""
    daemon.names = {**daemon.names, f"kv@{A}": "sha256:1"}
    assert pulled("always", f"kv@{A}") == []
    daemon.registry = {f"r.org:5000/kv@{B}": "sha256:2"}
    pulled("missing", f"r.org:5000/kv@{B}")
    assert daemon.pulled == [f"r.org:5000/kv@{B}"]


def test_a_pull_that_fails(daemon: StubDocker) -> None:
    """The registry's own words are the error, with the image; an id cannot be pulled."""
    with pytest.raises(ConfigError, match=r"image:kv:3: docker: manifest for kv:3 not found: manifest unknown"):
        pulled("missing", "kv:3")
    with pytest.raises(ConfigError, match="an id cannot be pulled"):
        pulled("missing", A)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(daemon: StubDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal has a bar that goes away; in CI, and under -q, it has lines like any log."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    daemon.registry = {"kv:2": "sha256:2", "kv:3": "sha256:3", "kv:4": "sha256:4"}
    stream = _Terminal()
    (said,) = pulled("missing", "kv:2", stream=stream)
    assert said.startswith("pulled kv:2")
    assert "pulling kv:2" in stream.getvalue()
    assert "of 1 layers" in stream.getvalue()
    stream = _Terminal()
    assert pulled("missing", "kv:3", stream=stream, verbosity=-1)[0] == "pulling kv:3"
    monkeypatch.setenv("CI", "true")
    assert pulled("missing", "kv:4", stream=stream)[0] == "pulling kv:4"
    assert stream.getvalue() == ""


def layer(name: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    """Return an event of a layer."""
    detail = {"current": current, "total": total} if total else {}
    return {"status": status, "progressDetail": detail, "id": name}


def test_how_far_a_pull_is() -> None:
    """Layers and bytes add up over events; what is unpacked counts as fetched, what was there has no bytes."""
    progress = PullProgress()
    assert str(progress.read({"status": "Pulling from library/kv", "id": "1"})) == "Pulling from library/kv"
    for event in (
        layer("a", "Pulling fs layer"),
        layer("b", "Already exists"),
        layer("a", "Downloading", 500_000_000, 2_000_000_000),
    ):
        told = progress.read(event)
    assert str(told) == "1 of 2 layers, 0.50 of 2.00 GB"
    told = progress.read(layer("a", "Extracting", 10, 2_000_000_000))
    assert (told.fetched_bytes, told.done) == (2_000_000_000, 1)
    told = progress.read(layer("a", "Pull complete"))
    assert str(told) == "2 of 2 layers, 2.00 of 2.00 GB"
    assert str(Pulled()) == "asking the registry"
    podman = PullProgress()
    assert str(podman.read({"stream": "Trying to pull r.org/kv:1...\n"})) == "Trying to pull r.org/kv:1..."

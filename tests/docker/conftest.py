"""A small image in which the real engine environment runs, made on the spot: no registry is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_kvcache.engine.environment import Engine
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.runs import containers

_NAME = "pytest-kvcache-test:base"
#: What a Python and the CPU builds of torch and vLLM link to.
_PACKAGES = "libnuma1,ca-certificates,libsqlite3-0,libffi8,libssl3,libuuid1,libncursesw6,libgomp1"


@dataclass(frozen=True)
class Image:
    """An image and what it needs of this machine.

    Args:
        name: Of the image.
        mounts: For `kv_image_mounts`.
    """

    name: str
    mounts: tuple[Path, ...]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all of these tests, with the reason, where they cannot run."""
    reason = _cannot_run()
    for item in items:
        if reason and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=reason))


def _cannot_run() -> str:
    try:
        with containers.daemon(containers.address()) as client:
            client.ping()
    except ConfigError as error:
        return error.what
    if os.getuid() != 0:
        return "debootstrap makes an image for root only"
    return "" if shutil.which("debootstrap") else "debootstrap is not installed"


@pytest.fixture(scope="session")
def archive() -> Iterator[Path]:
    """Debian's base with the libraries of an engine, as a file to import."""
    with tempfile.TemporaryDirectory(prefix="kvc-image-") as folder:
        base, archive = Path(folder) / "base", Path(folder) / "base.tar"
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(base)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        subprocess.run(["tar", "-C", str(base), "-cf", str(archive), "."], check=True)
        shutil.rmtree(base)
        yield archive


def imported(archive: Path, address: str, real_engine: Path) -> Image:
    """Return the image of Debian's base at a daemon; the engine itself (2.6 GB) and its Python are mounted."""
    prefix = Engine(real_engine, {}).call(
        [str(real_engine / "bin" / "python"), "-c", "import sys; print(sys.base_prefix)"], timeout_s=30
    )
    path = f"PATH={real_engine}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    repository, tag = _NAME.split(":")
    with containers.daemon(address) as client:
        client.api.import_image_from_file(str(archive), repository=repository, tag=tag, changes=[f"ENV {path}"])
        if not client.images.list(_NAME):  # Podman does not take the tag
            client.images.get(repository).tag(repository, tag)
    return Image(_NAME, (real_engine, Path(prefix.stdout.strip())))


@pytest.fixture(scope="session")
def image(archive: Path, real_engine: Path) -> Iterator[Image]:
    """The image at the machine's own daemon."""
    yield imported(archive, containers.address(), real_engine)
    with containers.daemon(containers.address()) as client:
        client.images.remove(_NAME)

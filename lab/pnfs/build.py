"""Kernel and root folder of the guest, built once for each state of what they are built from."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from lab.pnfs import host, kernel, packages, root
from lab.pnfs.folders import base

Say = Callable[[str], None]
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Built:
    """What a guest boots from.

    Args:
        kernel: The kernel, a program of the host.
        root: The root folder.
    """

    kernel: Path
    root: Path


def ready(say: Say, *, keep_sources: bool = False) -> Built:
    """Return kernel and root folder, built where they are not there yet.

    Args:
        say: Gets a line for each step.
        keep_sources: Whether the kernel's sources and objects (2 GB) stay for the next build.

    Raises:
        SetupError: The host lacks something, or a step failed.
    """
    folder = base()
    host.check(build=False)
    if not (folder / "root").exists():
        host.check(build=True)  # before apt is asked for versions: the host may have none
    inputs = of_kernel(), of_root()
    targets = folder / "kernel" / digest(inputs[0]) / "linux", folder / "root" / digest(inputs[1]) / "root"
    if all(target.exists() for target in targets):
        return Built(*targets)
    host.check(build=True)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "build.lock"):
        _once(targets[1], inputs[1], root.build, folder / "work", say)
        _once(targets[0], inputs[0], kernel.build, folder / "work", say)
        if not keep_sources:
            shutil.rmtree(folder / "work", ignore_errors=True)
    return Built(*targets)


def of_kernel() -> dict[str, str]:
    """Return everything that the kernel is built from: Debian's source by its version, and this project's files."""
    package = kernel.source_package(host.release())
    return {**packages.versions([package]), **_files(kernel.CONFIG, _HERE / "kernel.py")}


def of_root() -> dict[str, str]:
    """Return everything that the root folder is made of: Debian's packages by their versions, this project's files."""
    return {"suite": host.release().name, **packages.versions(root.PACKAGES), **_files(root.INIT, _HERE / "root.py")}


def digest(inputs: Mapping[str, str]) -> str:
    """Return a name for a state of inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _files(*paths: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _once(
    target: Path, inputs: Mapping[str, str], make: Callable[[Path, Path, Say], None], work: Path, say: Say
) -> None:
    """Make something that is there whole or not at all, and note what it was made from."""
    if target.exists():
        return
    start = time.monotonic()
    work.mkdir(exist_ok=True)
    folder = target.parent
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    make(partial / target.name, work, say)
    (partial / "inputs.json").write_text(json.dumps(dict(inputs), indent=2), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    say(f"{target.name} built in {time.monotonic() - start:.0f} s: {target}")

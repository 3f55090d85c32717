"""The connector for CPU tensors (`cpu_connector/`) in an engine environment that `setup` made.

The connector lies in a folder of the environment that is named after a digest of its source, and a `.pth` file names
this folder. Another version gets another folder, and the `.pth` file is replaced in one step, which servers that run or
boot survive; nothing else is touched.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_kvcache.runs.files import write_text

SOURCE = Path(__file__).with_name("cpu_connector")
DISTRIBUTION = "lmcache-cpu-connector"
#: Beginning of the names of the connector's folders.
FOLDER = "kvcache-cpu-connector-"
_PTH = "kvcache_cpu_connector.pth"


def digest() -> str:
    """Return a digest of the connector's source (12 hex digits)."""
    found = hashlib.sha256()
    for path in files():
        found.update(f"{path.relative_to(SOURCE)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def is_current(environment: Path) -> bool:
    """Whether the environment has the connector of the present source."""
    try:
        named = _pth(environment).read_text(encoding="utf-8").strip()
    except OSError:
        return False
    return named == str(_folder(environment)) and _folder(environment).is_dir()


def install(environment: Path, run: Callable[[list[str]], None]) -> None:
    """Install the connector of the present source, in place of another version.

    Nothing is downloaded: the environment's own setuptools builds the connector, which requires no other package.

    Args:
        environment: Folder of the environment. The caller holds the lock of `setup`.
        run: Runs a command line.

    Raises:
        SetupError: pip failed.
        OSError: The environment cannot be written to.
    """
    folder = _folder(environment)
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(prefix=f"{FOLDER}partial-", dir=environment) as scratch:
            source, built = Path(scratch, "source"), Path(scratch, "built")
            for path in files():
                copy = source / path.relative_to(SOURCE)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--no-input", "--no-deps", "--no-index"]
            run([*pip, "--no-build-isolation", "--target", str(built), str(source)])
            built.rename(folder)
    write_text(_pth(environment), f"{folder}\n")


def files() -> Iterator[Path]:
    """Yield the files of the connector's source in order, without what builds and interpreters leave there."""
    for path in sorted(SOURCE.rglob("*")):
        inside = path.relative_to(SOURCE).parts
        if path.is_file() and not any(part in ("__pycache__", "build") or ".egg-info" in part for part in inside):
            yield path


def _folder(environment: Path) -> Path:
    return environment / f"{FOLDER}{digest()}"


def _pth(environment: Path) -> Path:
    (packages,) = (environment / "lib").glob("python3*/site-packages")
    return packages / _PTH

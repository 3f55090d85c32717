"""Find the model that vLLM loads, a name or a folder; the folder of the tiny model is made when it is needed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from subprocess import TimeoutExpired

from filelock import FileLock

from pytest_kvcache.config.profile import TINY_MODEL, Profile
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.errors import SetupError

_SCRIPT = Path(__file__).with_name("tiny_model.py")
_LIMIT_S = 600.0


def tiny_model_path(engine: BaseEngine, home: Path) -> Path:
    """Return the folder of the tiny model that the script makes with the engine's torch and transformers."""
    made_by = [engine.versions.get(name, "") for name in ("torch", "transformers")]
    digest = hashlib.sha256(_SCRIPT.read_bytes() + "".join(made_by).encode()).hexdigest()[:12]
    return home / "models" / f"{TINY_MODEL}-{digest}"


def model_folder(profile: Profile, engine: BaseEngine, home: Path) -> Path | None:
    """Return the folder of the profile's model, making the tiny model first where the profile asks for it.

    Returns:
        None where the model is a name that vLLM finds by itself.

    Raises:
        SetupError: The model could not be made.
    """
    if profile.model != TINY_MODEL:
        folder = Path(profile.model)
        return folder.absolute() if folder.is_dir() else None
    target = tiny_model_path(engine, home)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _make(engine, partial)
            partial.rename(target)
    return target


def _make(engine: BaseEngine, folder: Path) -> None:
    argv = [str(engine.python), str(_SCRIPT), str(folder)]
    try:
        done = engine.call(argv, reads=[_SCRIPT.parent], writes=[folder.parent], timeout_s=_LIMIT_S)
        said = done.stderr.strip()[-300:]
    except (OSError, TimeoutExpired) as error:
        done, said = None, str(error)
    if done is None or done.returncode != 0:
        raise SetupError(
            f"the tiny model could not be made: {said}",
            where=engine.where,
            todo="`pytest-kvcache setup` repairs an environment of its own making",
        )

"""Where a project has its configuration, baselines and runs: one resolver for pytest and for every subcommand.

A value on the command line wins over `addopts`, and that over the ini key of the same name. Paths of the command line
are relative to the folder in which the command runs, those of an ini file to the ini file.
"""

from __future__ import annotations

import argparse
import inspect
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _pytest.config.findpaths import determine_setup
from _pytest.outcomes import Exit

from pytest_kvcache.errors import ConfigError

FILE_NAME = "kvcache.toml"
#: Options whose value is a path; each has an ini key behind it.
PATHS = ("kv_config", "kv_runs", "kv_baselines", "kv_engine")
TEXTS = ("kv_profile",)
#: What may be named in a path's place.
NO_PATHS = ("git:", "image:")
#: A folder with one of these is the top of a project, where no repository is around it.
_TOPS = ("pyproject.toml", "setup.cfg", "setup.py", "tox.ini")


@dataclass(frozen=True)
class Project:
    """What pytest makes of the folder in which a command runs.

    Args:
        rootdir: pytest's.
        inipath: The ini file that it reads, None where there is none.
        ini: Returns the value of an ini key: a text or a list of texts, empty where it is not set.
        invocation: The folder in which the command runs.
        addopts: Values of options in `addopts` and PYTEST_ADDOPTS, where pytest has not merged them with the command
            line already.
    """

    rootdir: Path
    inipath: Path | None
    ini: Callable[[str], str | list[str]]
    invocation: Path
    addopts: Mapping[str, str | None]


@dataclass(frozen=True)
class Located:
    """Everything of a project that has a place.

    Args:
        rootdir: pytest's.
        config: The kvcache.toml that is read, None where only the built-in profiles and tiers are known.
        runs: Folder of results.
        baselines: Folder of baselines.
        engine: Folder of an engine environment, or `image:…`; None for the one that `setup` makes.
        profile: Named, or None for the default of this machine.
        image_mounts: What containers of images get, from the ini file.
    """

    rootdir: Path
    config: Path | None
    runs: Path
    baselines: Path
    engine: str | None
    profile: str | None
    image_mounts: tuple[str, ...]


def locate(project: Project, given: Mapping[str, str | None]) -> Located:
    """Return where everything is.

    Args:
        project: As pytest sees it.
        given: Values of the command line, by the names in `PATHS` and `TEXTS`; None where nothing is given.

    Raises:
        ConfigError: A value is no text or no path, or names a configuration file that is not there.
    """
    found = {name: _path(name, project, given) for name in PATHS}
    config = found["kv_config"]
    explicit = None if config is None else Path(config)
    if explicit is not None and not explicit.is_file():
        raise ConfigError("no such file", where=str(explicit), todo="check --kv-config")
    used = explicit or find(project.rootdir)
    # Beside the configuration that was found, so that it does not matter from which folder of the project pytest runs.
    top = project.rootdir if explicit is not None or used is None else used.parent
    mounts = project.ini("kv_image_mounts")
    return Located(
        rootdir=project.rootdir,
        config=used,
        runs=Path(found["kv_runs"] or top / ".kvcache" / "runs"),
        baselines=Path(found["kv_baselines"] or top / "baselines"),
        engine=found["kv_engine"],
        profile=_text("kv_profile", project, given)[0] or None,
        image_mounts=tuple(mounts if isinstance(mounts, list) else mounts.split("\n") if mounts else ()),
    )


def find(rootdir: Path) -> Path | None:
    """Return the kvcache.toml of a project: that in `rootdir` or the nearest above it, None where there is none.

    It is looked for up to the top of the repository; where no repository is around, up to the nearest folder with a
    project file.

    Raises:
        ConfigError: Something else than a file has its name.
    """
    for folder in _up_to_the_top(rootdir):
        candidate = folder / FILE_NAME
        if candidate.is_file():
            return candidate
        if candidate.exists() or candidate.is_symlink():
            raise ConfigError("is no file", where=str(candidate), todo="remove it, or name another with --kv-config")
    return None


def project_here(folder: Path | None = None, environ: Mapping[str, str] = os.environ) -> Project:
    """Return the project around a folder as pytest would see it if it ran there without arguments.

    Args:
        folder: By default the present one.
        environ: For PYTEST_ADDOPTS.

    Raises:
        ConfigError: pytest cannot read its own configuration.
    """
    here = folder or Path.cwd()
    arguments: dict[str, Any] = {"inifile": None, "args": [], "rootdir_cmd_arg": None, "invocation_dir": here}
    if "override_ini" in inspect.signature(determine_setup).parameters:  # pytest 8.4 and newer
        arguments["override_ini"] = None
    try:
        rootdir, inipath, config, *_ = determine_setup(**arguments)
    except (Exception, Exit) as error:  # a UsageError, or whatever the parser of its file raises
        raise ConfigError(f"pytest cannot read its configuration: {error}", where=str(here)) from error

    def ini(name: str) -> str | list[str]:
        value = config.get(name, "")
        value = getattr(value, "value", value)  # pytest 9 and newer say where it comes from, too
        return value if isinstance(value, str | list) else str(value)

    added = ini("addopts")
    words = [
        *(added if isinstance(added, list) else shlex.split(added)),
        *shlex.split(environ.get("PYTEST_ADDOPTS", "")),
    ]
    return Project(rootdir, inipath, ini, here, _options(words))


def expanded(text: str, *, where: str) -> str:
    """Return a path with the home folder in place of a leading `~` or `~user`.

    Raises:
        ConfigError: There is no such user or home.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{text}: {error}", where=where) from None
    if "\0" in text:
        raise ConfigError(f"{text!r} is no path", where=where)
    return str(path)


def _path(name: str, project: Project, given: Mapping[str, str | None]) -> str | None:
    text, base = _text(name, project, given)
    if not text or text.startswith(NO_PATHS):
        return text or None
    return os.path.normpath(base / expanded(text, where=_option(name)))


def _text(name: str, project: Project, given: Mapping[str, str | None]) -> tuple[str, Path]:
    """Return a value, and the folder that it is relative to if it is a path."""
    option = given.get(name) or project.addopts.get(name)
    if option:
        return option, project.invocation
    value = project.ini(name)
    if not isinstance(value, str):
        raise ConfigError(f"must be one text, not {value!r}", where=f"{project.inipath}: {name}")
    return value.strip(), project.inipath.parent if project.inipath else project.rootdir


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _options(words: list[str]) -> dict[str, str | None]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in (*PATHS, *TEXTS):
        parser.add_argument(_option(name), dest=name)
    try:
        found, _ = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error), where="addopts") from None
    return dict(vars(found))


def _up_to_the_top(rootdir: Path) -> list[Path]:
    folders = [rootdir, *rootdir.parents]
    for is_top in (
        lambda folder: (folder / ".git").exists(),
        lambda folder: any((folder / t).is_file() for t in _TOPS),
    ):
        for count, folder in enumerate(folders, start=1):
            if is_top(folder):
                return folders[:count]
    return [rootdir]

"""Where a project has its configuration, baselines and runs: one resolver for pytest and for every subcommand.

A value on the command line wins over `addopts`, and that over the ini key of the same name. Paths of the command line
are relative to the folder in which the command runs, those of an ini file to the ini file. pytest itself says where its
root and its ini file are, and what is in them: a subcommand has it read both, and stops it before it does more.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.paths import expanded

FILE_NAME = "kvcache.toml"
#: Options whose value is a path; each has an ini key behind it.
PATHS = ("kv_config", "kv_runs", "kv_baselines", "kv_engine")
TEXTS = ("kv_profile", "kv_launcher")
#: Begins the name of a container image, in the place of an engine's folder.
_IMAGE = "image:"
#: What may be named in the place of the engine to compare with.
NO_PATHS = ("git:", _IMAGE)
#: A folder with one of these is the top of a project, where no repository is around it.
_TOPS = ("pyproject.toml", "setup.cfg", "setup.py", "tox.ini")
_OUTCOMES = (pytest.fail.Exception, pytest.exit.Exception)


@dataclass(frozen=True)
class Project:
    """What pytest makes of the folder in which a command runs.

    Args:
        rootdir: pytest's.
        inipath: The ini file that it reads, None where there is none.
        ini: Returns the value of an ini key: a text or a list of texts, empty where it is not set.
        option: Returns the value of an option, of the command line or of `addopts`; None where it is not given.
        invocation: The folder in which the command runs.
    """

    rootdir: Path
    inipath: Path | None
    ini: Callable[[str], Any]
    option: Callable[[str], Any]
    invocation: Path


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
        launcher: Named, or None for what the profile says.
        image_mounts: What containers of images get, of the ini file and of options.
    """

    rootdir: Path
    config: Path | None
    runs: Path
    baselines: Path
    engine: str | None
    profile: str | None
    launcher: str | None
    image_mounts: tuple[str, ...]


def locate(project: Project) -> Located:
    """Return where everything is.

    Args:
        project: As pytest sees it.

    Raises:
        ConfigError: A value is no text or no path, or names a configuration file that is not there.
    """
    found = {name: _path(name, project) for name in PATHS}
    explicit = None if found["kv_config"] is None else Path(found["kv_config"])
    if explicit is not None and not _is_file(explicit):
        raise ConfigError(f"no such file: {explicit}", where=_text("kv_config", project).where)
    used = explicit or find(project.rootdir)
    # Beside the configuration that was found, so that it does not matter from which folder of the project pytest runs.
    top = project.rootdir if explicit is not None or used is None else used.parent
    return Located(
        rootdir=project.rootdir,
        config=used,
        runs=Path(found["kv_runs"] or top / ".kvcache" / "runs"),
        baselines=Path(found["kv_baselines"] or top / "baselines"),
        engine=found["kv_engine"],
        profile=_text("kv_profile", project).value or None,
        launcher=_text("kv_launcher", project).value or None,
        image_mounts=_mounts(project),
    )


def find(rootdir: Path) -> Path | None:
    """Return the kvcache.toml of a project: that in `rootdir` or the nearest above it, None where there is none.

    It is looked for up to the top of the repository; where no repository is around, up to the nearest folder with a
    project file.

    Raises:
        ConfigError: Something else than a file has its name, or a folder cannot be looked into.
    """
    return next((path for path in candidates(rootdir) if _is_file(path)), None)


def candidates(rootdir: Path) -> list[Path]:
    """Return where a project's kvcache.toml may be, the first one that is there being the one that is read."""
    folders = [rootdir, *rootdir.parents]
    for is_top in (_has_repository, _has_project_file):
        for count, folder in enumerate(folders, start=1):
            if is_top(folder):
                return [each / FILE_NAME for each in folders[:count]]
    return [rootdir / FILE_NAME]


def of_config(config: pytest.Config, option: Callable[[str], Any] | None = None) -> Project:
    """Return what pytest says of the project.

    Args:
        config: pytest's.
        option: Returns the value of an option; pytest's `getoption` where not given.
    """
    return Project(
        config.rootpath, config.inipath, config.getini, option or config.getoption, config.invocation_params.dir
    )


def project_here(arguments: Sequence[str] = ()) -> Project:
    """Return the project as pytest would see it if it ran in the present folder with these arguments.

    pytest reads its command line, PYTEST_ADDOPTS, the ini file and its `addopts`, and loads its plugins, as it always
    does. Before it imports any conftest.py it is stopped.

    Args:
        arguments: Of pytest, each a word that begins with a dash.

    Raises:
        ConfigError: pytest cannot read its own configuration.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            # Without rewritten assertions: pytest would complain that this plugin is imported already.
            pytest.main(["-p", "kvcache", "--assert=plain", *arguments], plugins=[_Stop()])
        lines = [line.strip().removeprefix("ERROR: ") for line in said.getvalue().splitlines()]
        what = next((line for line in lines if line and not line.startswith("usage:")), "it ends at once")
    except _KnownError as known:
        options = known.config.known_args_namespace
        return of_config(known.config, lambda name: getattr(options, name, None))
    except (Exception, SystemExit, *_OUTCOMES) as error:  # of a parser of its files, or of a plugin
        what = f"{type(error).__name__}: {error}".splitlines()[0]
    raise ConfigError(f"pytest cannot read its configuration: {what}", where=str(Path.cwd())) from None


class _KnownError(BaseException):
    """Ends pytest once its configuration is known."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__("the configuration is known")
        self.config = config


class _Stop:
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_load_initial_conftests(self, early_config: pytest.Config) -> Iterator[None]:
        self._stop(early_config)
        yield

    def _stop(self, config: pytest.Config) -> None:
        raise _KnownError(config)


@dataclass(frozen=True)
class _Text:
    """A value as it was written.

    Args:
        value: "" where there is none.
        base: What it is relative to if it is a path.
        where: The option, or the ini file and the key.
    """

    value: str
    base: Path
    where: str


def _path(name: str, project: Project) -> str | None:
    text = _text(name, project)
    if not text.value or (name == "kv_engine" and text.value.startswith(_IMAGE)):
        return text.value or None
    try:
        return str((text.base / expanded(text.value)).absolute())
    except ValueError as error:
        raise ConfigError(str(error), where=text.where) from None


def _text(name: str, project: Project) -> _Text:
    given = project.option(name)
    if given:
        return _Text(str(given), project.invocation, "--" + name.replace("_", "-"))
    where = f"{project.inipath}: {name}"
    value = _ini(name, project)
    if not isinstance(value, str):
        raise ConfigError(f"must be one text, not {value!r}", where=where)
    return _Text(value.strip(), project.inipath.parent if project.inipath else project.rootdir, where)


def _mounts(project: Project) -> tuple[str, ...]:
    mounts = _ini("kv_image_mounts", project)
    if not isinstance(mounts, list) or not all(isinstance(each, str) for each in mounts):
        raise ConfigError(f"must be a list of texts, not {mounts!r}", where=f"{project.inipath}: kv_image_mounts")
    return (*mounts, *(project.option("kv_image_mount") or ()))


def _ini(name: str, project: Project) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pytest's, of a list for a text: that is an error of ours in any case
            return project.ini(name)
    except (TypeError, ValueError, pytest.UsageError) as error:  # of another type, in the tables that keep types
        what = str(error).removeprefix(f"{project.inipath}: ")
        raise ConfigError(what, where=f"{project.inipath}: {name}") from None


def _is_file(path: Path) -> bool:
    """Return whether a file is there.

    Raises:
        ConfigError: Something else is, or it cannot be said.
    """
    try:
        if path.is_file():
            return True
        other = path.exists() or path.is_symlink()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if other:
        raise ConfigError("is no file", where=str(path), todo="remove it, or name another with --kv-config")
    return False


def _has_repository(folder: Path) -> bool:
    return (folder / ".git").exists()


def _has_project_file(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOPS)

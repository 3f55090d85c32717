"""Command line and ini settings of the plugin. Imports nothing heavy: this runs in every pytest session."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_kvcache.config.options import Options, UpdateMode

MARKER = "perf"

_INI = {
    "kv_profile": "profile that perf tests run (see kvcache.toml)",
    "kv_engine": "environment with vLLM and LMCache, or image:REPO[:TAG], in place of the one that `setup` makes",
    "kv_config": "the kvcache.toml to use (default: the one in rootdir)",
    "kv_runs": "folder of results (default: .kvcache/runs in rootdir)",
    "kv_baselines": "folder of baselines (default: baselines in rootdir)",
}


_PATH_OPTIONS = ("--kv-engine", "--kv-config", "--kv-runs", "--kv-baselines", "--kv-against")


def add_options(parser: pytest.Parser) -> None:
    """Register options and ini keys; each `--kv-x` has the ini key `kv_x` behind it."""
    group = parser.getgroup("kvcache", "KV cache offloading (pytest-kvcache)")
    group.addoption(
        "--tier", action="append", default=[], metavar="NAME", help="run perf tests on this tier; repeatable"
    )
    group.addoption(
        "--update-baselines",
        action="store_true",
        help="store what this run measures as the new baselines, in place of comparing",
    )
    group.addoption(
        "--record-baselines",
        action="store_true",
        help="store baselines only where this machine has none yet, or too few boots; compare the others",
    )
    group.addoption(
        "--kv-boots",
        type=int,
        default=None,
        metavar="N",
        help="most boots of a tier in this session (default: profile)",
    )
    group.addoption(
        "--kv-against",
        default=None,
        metavar="ENGINE",
        help="compare with another engine environment, image:REPO[:TAG], or git:REVISION of kvcache.toml, in place of "
        "baselines",
    )
    group.addoption(
        "--kv-image-mount",
        action="append",
        default=[],
        metavar="SOURCE[:TARGET][:ro|rw]",
        help="file or folder that containers of an image get, beside those of the ini key; repeatable",
    )
    group.addoption(
        "--kv-strict", action="store_true", default=None, help="inconclusive and incomparable fail (default in CI)"
    )
    group.addoption("--kv-no-strict", action="store_false", dest="kv_strict", help="they do not, in CI either")
    for name, text in _INI.items():
        group.addoption("--" + name.replace("_", "-"), default=None, metavar="VALUE", help=text)
        parser.addini(name, help=text, default="")
    parser.addini("kv_image_mounts", type="linelist", default=[], help="as --kv-image-mount, one a line")


def wants_perf(config: pytest.Config) -> bool:
    """Return whether this session was asked to run perf tests: by --tier, or by -m naming the marker."""
    if config.getoption("tier"):
        return True
    return re.search(rf"\b{MARKER}\b", config.getoption("markexpr", "") or "") is not None


def undecided_status(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Return category, letter and word of a test that neither passed nor failed, None for all others."""
    if report.when != "call" or not report.passed:
        return None
    verdict = next((value for name, value in report.user_properties if name == "kv_verdict"), None)
    if verdict not in {"inconclusive", "incomparable"}:
        return None
    return str(verdict), "?", str(verdict).upper()


def from_config(config: pytest.Config) -> Options:
    """Collect the options; a value on the command line wins over one in the ini file.

    Raises:
        pytest.UsageError: A folder was given such that pytest took it for a test path.
        ConfigError: A value is no path, or names a configuration file that is not there.
    """
    from pytest_kvcache.config import project  # noqa: PLC0415 - only where perf tests were asked for
    from pytest_kvcache.config.options import Options  # noqa: PLC0415 - only where perf tests were asked for

    _check_rootdir(config)
    here = project.Project(config.rootpath, config.inipath, config.getini, config.invocation_params.dir, addopts={})
    found = project.locate(here, {name: config.getoption(name) for name in (*project.PATHS, *project.TEXTS)})
    if config.getoption("update_baselines"):
        update: UpdateMode = "all"
    else:
        update = "missing" if config.getoption("record_baselines") else "none"
    return Options(
        rootdir=found.rootdir,
        tiers=tuple(dict.fromkeys(config.getoption("tier"))),
        profile=found.profile,
        engine=found.engine,
        config=found.config,
        runs=found.runs,
        baselines=found.baselines,
        update=update,
        boots=_boots(config),
        strict=_strict(config),
        against=_against(config, update),
        image_mounts=(*found.image_mounts, *config.getoption("kv_image_mount")),
    )


def _boots(config: pytest.Config) -> int | None:
    boots: int | None = config.getoption("kv_boots")
    if boots is not None and boots < 1:
        raise pytest.UsageError(f"--kv-boots must be at least 1, not {boots}")
    return boots


def _strict(config: pytest.Config) -> bool:
    strict: bool | None = config.getoption("kv_strict")
    return bool(os.environ.get("CI")) if strict is None else strict


def _against(config: pytest.Config, update: UpdateMode) -> str | None:
    from pytest_kvcache.config import project  # noqa: PLC0415 - only where perf tests were asked for

    against: str | None = config.getoption("kv_against")
    if against and update != "none":
        raise pytest.UsageError("--kv-against compares two engines and stores nothing: leave out --update-baselines")
    if against and not against.startswith(project.NO_PATHS):
        return str((config.invocation_params.dir / project.expanded(against, where="--kv-against")).absolute())
    return against or None


def _check_rootdir(config: pytest.Config) -> None:
    """Refuse `--kv-engine FOLDER` where pytest, which reads its ini file before it knows the option, went astray.

    Raises:
        pytest.UsageError: With the spelling that works.
    """
    if config.inipath is not None or config.getoption("rootdir"):
        return
    words = config.invocation_params.args
    for option, value in itertools.pairwise(words):
        if str(option) in _PATH_OPTIONS and Path(value).exists():
            raise pytest.UsageError(
                f"write {option}={value} (with =): pytest took the folder for a test path, and {config.rootpath} "
                "for the root of the project"
            )

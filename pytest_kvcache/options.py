"""Command line and ini settings of the plugin. The module imports nothing heavy: it runs in every pytest session."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_kvcache.config.options import Options, PullMode, UpdateMode

MARKER = "perf"
#: Short names of options, with destination and action. Other plugins may have taken them; the long names always work.
SHORT = {
    "--tier": ("kv_tier", "append"),
    "--update-baselines": ("kv_update_baselines", "store_true"),
    "--record-baselines": ("kv_record_baselines", "store_true"),
}
_GROUP = "KV cache offloading (pytest-kvcache)"

_INI = {
    "kv_profile": "profile that perf tests run (see kvcache.toml)",
    "kv_launcher": "what boots the servers: process, docker, ray, attach (they stand already), or another one "
    "(default: the profile's)",
    "kv_engine": "environment with vLLM and LMCache, or image:REPO[:TAG], in place of the one that `setup` makes",
    "kv_config": "the kvcache.toml to use (default: the nearest one, from rootdir upwards)",
    "kv_runs": "folder of results (default: .kvcache/runs beside kvcache.toml, else in rootdir)",
    "kv_baselines": "folder of baselines (default: baselines beside kvcache.toml, else in rootdir)",
}


_PATH_OPTIONS = ("--kv-engine", "--kv-config", "--kv-runs", "--kv-baselines", "--kv-against")


def add_options(parser: pytest.Parser) -> None:
    """Register options and ini keys; an option `--kv-x` that may be set in the ini file has the key `kv_x`."""
    group = parser.getgroup("kvcache", _GROUP)
    group.addoption(
        "--kv-tier", action="append", default=[], metavar="NAME", help="run perf tests on this tier; repeatable"
    )
    group.addoption(
        "--kv-update-baselines",
        action="store_true",
        help="store what this run measures as the new baselines, in place of comparing",
    )
    group.addoption(
        "--kv-record-baselines",
        action="store_true",
        help="store baselines only where this machine has none yet, or too few boots; compare the others",
    )
    group.addoption(
        "--kv-allow-suspect",
        action="store_true",
        help="store baselines also of boots that had other work beside them",
    )
    group.addoption(
        "--kv-boots",
        type=int,
        default=None,
        metavar="N",
        help="most boots behind a verdict (default: profile); with --kv-against those of both sides together",
    )
    group.addoption(
        "--kv-wait",
        type=float,
        default=None,
        metavar="SECONDS",
        help="wait so long for another session that measures on the same GPUs or processors (default: 1800; 0: do not)",
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
        "--kv-pull",
        default=None,
        metavar="WHEN",
        help="fetch the image of an engine from its registry: never (default), missing, or always (finds moved tags)",
    )
    group.addoption(
        "--kv-base-url",
        default="",
        metavar="URL",
        help="with --kv-launcher attach: router of --tier's deployment, with /v1 (default: kvcache.toml's)",
    )
    group.addoption(
        "--kv-server-url",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="a vLLM server of that deployment, without /v1; repeatable",
    )
    group.addoption(
        "--kv-metrics-url",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="a Prometheus endpoint of that deployment, such as lmcache-0=http://host:8080/metrics; repeatable",
    )
    group.addoption(
        "--kv-load-node",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="send the load from this node (`pytest-kvcache load-node`) in place of this machine; repeatable",
    )
    group.addoption(
        "--kv-strict", action="store_true", default=None, help="inconclusive and incomparable fail (default in CI)"
    )
    group.addoption("--kv-no-strict", action="store_false", dest="kv_strict", help="they do not, in CI either")
    for name, text in _INI.items():
        group.addoption("--" + name.replace("_", "-"), default=None, metavar="VALUE", help=text)
        parser.addini(name, help=text, default="")
    parser.addini("kv_wait", help="as --kv-wait", default="")
    parser.addini("kv_pull", help="as --kv-pull", default="")
    parser.addini("kv_image_mounts", type="linelist", default=[], help="as --kv-image-mount, one a line")


def add_short_options(parser: pytest.Parser) -> None:
    """Register those short names of options that no plugin and no conftest.py has taken for itself.

    This is to be called after all plugins have registered theirs: registering a name twice is an error.
    """
    group = parser.getgroup("kvcache", _GROUP)
    taken = _destinations(parser)
    for short, (dest, action) in SHORT.items():
        if short in taken:
            continue
        more: dict[str, Any] = {"metavar": "NAME", "default": []} if action == "append" else {}
        group.addoption(short, dest=dest, action=action, help=f"short for --{dest.replace('_', '-')}", **more)


def tiers_named(config: pytest.Config) -> list[str]:
    """Return the tiers that the command line names."""
    return list(config.getoption("kv_tier", None) or [])


def wanted_of_perf_tests(config: pytest.Config) -> str:
    """Return the given option that has no effect without perf tests, "" where none is given."""
    for short in ("--update-baselines", "--record-baselines"):
        if config.getoption(SHORT[short][0]):
            return spelled(config, short)
    return "--kv-against" if config.getoption("kv_against") else ""


def spelled(config: pytest.Config, short: str) -> str:
    """Return the name of our option to print: the short name, or the long one where another plugin took the short."""
    dest, _ = SHORT[short]
    return short if _destinations(config._parser).get(short) == dest else "--" + dest.replace("_", "-")


def _destinations(parser: pytest.Parser) -> dict[str, str]:
    """Return the destination of each registered option, by every one of its names."""
    groups = [parser._anonymous, *parser._groups]  # pytest has no public list of registered options
    return {name: option.dest for group in groups for option in group.options for name in option.names()}


def undecided_status(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Return pytest's category, letter and word for an undecided test, None for all other tests."""
    if report.when != "call" or not report.passed:
        return None
    verdict = next((value for name, value in report.user_properties if name == "kv_verdict"), None)
    if verdict not in {"inconclusive", "incomparable"}:
        return None
    return str(verdict), "?", str(verdict).upper()


def from_config(config: pytest.Config) -> Options:
    """Collect the options; a value on the command line wins over one in the ini file.

    Raises:
        pytest.UsageError: A value is wrong, or pytest took a folder given to an option for a test path.
        ConfigError: A value is no path, or names a configuration file that is not there.
    """
    from pytest_kvcache.config import project  # noqa: PLC0415 - only where perf tests were asked for
    from pytest_kvcache.config.options import Addresses, Options  # noqa: PLC0415 - only where perf tests were asked for

    _check_rootdir(config)
    found = project.locate(project.of_config(config))
    if config.getoption("kv_update_baselines"):
        update: UpdateMode = "all"
    else:
        update = "missing" if config.getoption("kv_record_baselines") else "none"
    return Options(
        rootdir=found.rootdir,
        tiers=tuple(dict.fromkeys(tiers_named(config))),
        profile=found.profile,
        engine=found.engine,
        config=found.config,
        runs=found.runs,
        baselines=found.baselines,
        update=update,
        allow_suspect=config.getoption("kv_allow_suspect"),
        tier_option=spelled(config, "--tier"),
        update_option=spelled(config, "--update-baselines"),
        boots=_boots(config),
        wait_s=_wait_s(config),
        strict=_strict(config),
        against=_against(config, update),
        image_mounts=found.image_mounts,
        pull=_pull(config),
        launcher=found.launcher,
        addresses=Addresses(
            base_url=config.getoption("kv_base_url"),
            server_urls=tuple(config.getoption("kv_server_url")),
            metrics_urls=tuple(config.getoption("kv_metrics_url")),
        ),
        load_nodes=tuple(config.getoption("kv_load_node")),
    )


def _boots(config: pytest.Config) -> int | None:
    boots: int | None = config.getoption("kv_boots")
    if boots is not None and boots < 1:
        raise pytest.UsageError(f"--kv-boots must be at least 1, not {boots}")
    return boots


def _wait_s(config: pytest.Config) -> float:
    from pytest_kvcache.config.options import DEFAULT_WAIT_S  # noqa: PLC0415 - only where perf tests were asked for

    given = config.getoption("kv_wait")
    if given is None:
        given = config.getini("kv_wait") or DEFAULT_WAIT_S
    try:
        wait_s = float(given)
    except (TypeError, ValueError):
        raise pytest.UsageError(f"kv_wait must be a number of seconds, not {given!r}") from None
    if not 0 <= wait_s < float("inf"):
        raise pytest.UsageError(f"--kv-wait must be 0 or more seconds, not {wait_s}")
    return wait_s


def _pull(config: pytest.Config) -> PullMode:
    given = config.getoption("kv_pull") or config.getini("kv_pull") or "never"
    modes: tuple[PullMode, ...] = ("never", "missing", "always")
    for mode in modes:
        if given == mode:
            return mode
    raise pytest.UsageError(f"kv_pull must be one of {', '.join(modes)}, not {given!r}")


def _strict(config: pytest.Config) -> bool:
    strict: bool | None = config.getoption("kv_strict")
    return bool(os.environ.get("CI")) if strict is None else strict


def _against(config: pytest.Config, update: UpdateMode) -> str | None:
    from pytest_kvcache import paths  # noqa: PLC0415 - only where perf tests were asked for
    from pytest_kvcache.config import project  # noqa: PLC0415 - only where perf tests were asked for

    against: str | None = config.getoption("kv_against")
    if against and update != "none":
        raise pytest.UsageError("--kv-against compares two engines and stores nothing: leave out --update-baselines")
    if against and not against.startswith(project.NO_PATHS):
        try:
            return str((config.invocation_params.dir / paths.expanded(against)).absolute())
        except ValueError as error:
            raise pytest.UsageError(f"--kv-against: {error}") from None
    return against or None


def _check_rootdir(config: pytest.Config) -> None:
    """Refuse `--kv-engine FOLDER` where pytest took FOLDER for a test path, and so for the root of the project.

    pytest looks for its ini file before it knows our options.

    Raises:
        pytest.UsageError: It happened; the error has the spelling that works.
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

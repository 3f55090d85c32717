"""The table of launchers and checks, and that of kills, each with pairs of the real engine.

    python -m tests.conformance [process] [docker=image:REPO:TAG] [ray] [attach] [LAUNCHER=ENGINE …]
    python -m tests.conformance --kills process docker=image:REPO:TAG ray

One boot answers all that must hold while a pair is up, and its end what it leaves; two more whether storage is fresh.
Boot times and TTFT are given as ratios to the first launcher's. A kill has a boot of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from pytest_kvcache.config.ray import RaySettings
from pytest_kvcache.engine.container import same_path
from pytest_kvcache.engine.named import engine_named
from pytest_kvcache.engine.setup import engine_path
from pytest_kvcache.home import home
from pytest_kvcache.tiers import catalogue
from tests.conformance import deployment, kills
from tests.conformance.asking import ttft_s
from tests.conformance.launchers import WHILE_UP, Boot, Case, Check, booted, leaves_nothing, starts_cold

_BOOT_S = 300.0
#: Figures that are told as ratios to the first launcher's: the row, and how the figure itself is written.
_RATIOS = {"boot": "{:.0f} s", "TTFT, small request": "{:.3f} s"}

Column = dict[str, str | float]


def main(arguments: list[str]) -> int:
    """Print a table; return 1 where a check does not hold."""
    options = _parser().parse_args(arguments)
    if options.kills and any(word.partition("=")[0] == "attach" for word in options.launchers):
        _parser().error("attach starts nothing that could be killed: the table of checks has the kill of a server")
    table: dict[str, Column] = {}
    for word in options.launchers:
        with tempfile.TemporaryDirectory(prefix="kvc-conformance-", dir=options.folder) as folder:
            case = case_of(options, word, Path(folder))
            if options.hold:
                kills.hold(case, options.hold)
            table[case.name] = killed(case, options, word) if options.kills else tried(case)
    rows = [*kills.KILLS, kills.PYTEST] if options.kills else [*WHILE_UP, "teardown", "cold start", *_RATIOS]
    print(told(table, "killed" if options.kills else "check", rows))
    return int(any("FAILS" in str(value) for column in table.values() for value in column.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.conformance", description="What holds of each launcher.")
    parser.add_argument("launchers", nargs="*", default=["process"], metavar="LAUNCHER[=ENGINE]")
    parser.add_argument("--kills", action="store_true", help="print what is said and left where something is killed")
    parser.add_argument("--config", type=Path, help="kvcache.toml with the profile")
    parser.add_argument("--profile", default="cpu-tiny-mp", help="profile in multi-process mode")
    parser.add_argument(
        "--address", default="", help="cluster of the launcher ray; without it one is made of this machine"
    )
    parser.add_argument(
        "--folder", type=Path, help="where results and the tier's folder are made; all nodes must see it"
    )
    parser.add_argument(
        "--mount", type=Path, action="append", default=[], help="what containers see of this machine, at its own path"
    )
    parser.add_argument(
        "--hold", type=Path, metavar="FILE", help="only boot, note in FILE what that has made, and serve"
    )
    return parser


def case_of(options: argparse.Namespace, word: str, folder: Path) -> Case:
    """Return the case of a LAUNCHER[=ENGINE]; the deployment of `attach` is booted as processes."""
    name, _, engine = word.partition("=")
    profile = catalogue.load(options.config).profile(options.profile)
    if options.address:
        profile = profile.model_copy(update={"ray": RaySettings(address=options.address)})
    found = engine_named(engine or str(engine_path(home())), [same_path(path) for path in options.mount])
    return Case(name, found, profile, home(), folder, boot_s=_BOOT_S)


def tried(case: Case) -> Column:
    """Return what each check of a launcher came to, with the times of its boot and of small requests (s)."""
    column: Column = {}
    try:
        (_attached if case.name == "attach" else _booted)(case, column)
    except Exception as error:
        traceback.print_exc()
        column.setdefault("boots", _failed(error))
    return column


def _booted(case: Case, column: Column) -> None:
    started = time.monotonic()
    with booted(case) as boot:
        column["boot"] = time.monotonic() - started
        _try(WHILE_UP, boot, column)
    column["teardown"] = _outcome(lambda: leaves_nothing(boot))
    column["cold start"] = _outcome(lambda: starts_cold(case))


def _attached(case: Case, column: Column) -> None:
    with booted(Case("process", case.engine, case.profile, case.home, case.folder, case.boot_s)) as standing:
        checks = deployment.while_attached(standing)
        started = time.monotonic()
        with deployment.attached(standing) as boot:
            column["boot"] = f"not its own: attached in {time.monotonic() - started:.1f} s"
            _try({name: check for name, check in checks.items() if name != "kill"}, boot, column)
        column["teardown"] = _outcome(lambda: deployment.is_left_alone(standing, boot))
        column["cold start"] = _outcome(lambda: deployment.keeps_what_is_stored(standing))
        with deployment.attached(standing) as boot:
            column["kill"] = _outcome(lambda: checks["kill"](boot))


def _try(checks: Mapping[str, Check], boot: Boot, column: Column) -> None:
    for name, check in checks.items():
        column[name] = _outcome(lambda check=check: check(boot))  # type: ignore[misc]
        if name == "boots":  # before anything is ended
            column["TTFT, small request"] = ttft_s(boot.pair)


def killed(case: Case, options: argparse.Namespace, word: str) -> Column:
    """Return what is said and left after each kill."""
    column: Column = {}
    for what in kills.KILLS:
        column[what] = _outcome(lambda what=what: kills.killed(case, what))  # type: ignore[misc]
    again = ["--profile", options.profile, word]
    again += ["--config", str(options.config)] if options.config else []
    again += ["--address", options.address] if options.address else []
    again += [word for path in options.mount for word in ("--mount", str(path))]
    column[kills.PYTEST] = _outcome(lambda: kills.pytest_killed(case, again))
    return column


def _outcome(check: Callable[[], str | None]) -> str:
    try:
        return check() or "holds"
    except Exception as error:
        traceback.print_exc()
        return _failed(error)


def _failed(error: Exception) -> str:
    """Return an error in one line; one without words, such as an assertion's, is told by its line of code."""
    said = str(error).partition("\n")[0] or traceback.extract_tb(error.__traceback__)[-1].line
    return f"FAILS: {type(error).__name__}: {said}"


def told(table: Mapping[str, Column], what: str, rows: list[str]) -> str:
    """Return a table in Markdown; a check that was not reached says so."""
    lines = [f"| {what} | {' | '.join(table)} |", f"|---|{'---|' * len(table)}"]
    for row in rows:
        first = next((value for column in table.values() if isinstance(value := column.get(row), float)), 1.0)
        cells = []
        for column in table.values():
            value = column.get(row, "not reached")
            text = f"{value / first:.2f} of {_RATIOS[row].format(first)}" if isinstance(value, float) else value
            cells.append(text.replace("|", "\\|"))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The table of launchers and checks, each with a pair of the real engine.

    python -m tests.conformance [process] [docker=image:REPO:TAG] [LAUNCHER=ENGINE …]

One boot answers all that must hold while a pair is up, and its end what it leaves; two more whether storage is fresh.
Boot times are given as ratios to the first launcher's.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pytest_kvcache.engine.named import engine_named
from pytest_kvcache.engine.setup import engine_path
from pytest_kvcache.home import home
from pytest_kvcache.tiers import catalogue
from tests.conformance.launchers import WHILE_UP, Case, booted, leaves_nothing, starts_cold

_BOOT_S = 300.0


def main(wanted: list[str]) -> int:
    """Print the table; return 1 where a check does not hold."""
    table: dict[str, dict[str, str]] = {}
    for word in wanted or ["process"]:
        name, _, engine = word.partition("=")
        with tempfile.TemporaryDirectory(prefix="kvc-conformance-") as folder:
            profile = catalogue.load(None).profile("cpu-tiny-mp")
            found = engine_named(engine or str(engine_path(home())))
            table[name] = tried(Case(name, found, profile, home(), Path(folder), boot_s=_BOOT_S))
    rows = [*WHILE_UP, "teardown", "cold start", "boot"]
    first = float(next(iter(table.values()))["boot_s"])
    for results in table.values():
        results["boot"] = f"{float(results['boot_s']) / first:.2f} of {first:.0f} s"
    print(f"| check | {' | '.join(table)} |\n|---|{'---|' * len(table)}")
    for row in rows:
        print(f"| {row} | {' | '.join(results.get(row, '') for results in table.values())} |")
    return int(any(value.startswith("FAILS") for results in table.values() for value in results.values()))


def tried(case: Case) -> dict[str, str]:
    """Return what each check of a launcher came to."""
    results: dict[str, str] = {}
    started = time.monotonic()
    with booted(case) as boot:
        results["boot_s"] = str(time.monotonic() - started)
        for name, check in WHILE_UP.items():
            results[name] = _outcome(lambda check=check: check(boot))  # type: ignore[misc]
    results["teardown"] = _outcome(lambda: leaves_nothing(boot))
    results["cold start"] = _outcome(lambda: starts_cold(case))
    return results


def _outcome(check: Callable[[], object]) -> str:
    try:
        check()
    except Exception as error:
        return f"FAILS: {type(error).__name__}: {error}".splitlines()[0]
    return "holds"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The pictures of docs/results.md: a first session on stub programs, at two widths.

    python -m tests.screens FOLDER

The stubs answer as a server does and compute nothing: their figures are none, and the title of each picture says so.
`python -m docgen.screens --width 80 --to FOLDER -- pytest -m perf …` takes the same pictures of a real session.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from docgen import screens
from tests.stubs.engine import make_engine, toml

WIDTHS = (80, 160)
TITLE = "pytest -m perf (stub programs in place of an engine: no measurement)"
#: What is on the screen while a load is under way.
WHEN = " finished, "


def write_project(folder: Path, *, duration_s: float) -> None:
    """Write a project with the perf test of this repository, whose engine is made of stubs."""
    engine = make_engine(folder / "engine")
    (folder / "kvcache.toml").write_text(toml(contexts=(50, 60), duration_s=duration_s), encoding="utf-8")
    example = Path(__file__).parent / "perf" / "test_multi_round_qa.py"
    (folder / "test_multi_round_qa.py").write_text(example.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "pyproject.toml").write_text(
        f'[tool.pytest.ini_options]\nkv_engine = "{engine}"\nkv_profile = "stub"\n', encoding="utf-8"
    )


def session(
    folder: Path, width: int, *, tiers: tuple[str, ...] = ("gpu", "cpu", "pnfs"), when: str = WHEN
) -> screens.Captured:
    """Run a first session of a project and return its pictures."""
    asked = [f"--tier={tier}" for tier in tiers]
    # A session that a distributed test starts is none itself.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return screens.capture(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "perf",
         "--benchmark-disable", "--record-baselines", "--kv-boots=1", *asked],
        width=width,
        when=when,
        title=TITLE,
        environ=environ | {"PYTEST_KVCACHE_HOME": str(folder / "home")},
        folder=folder,
    )  # fmt: skip


def main() -> int:
    """Take the pictures at each width, each of a first session."""
    to = Path(sys.argv[1])
    for width in WIDTHS:
        with tempfile.TemporaryDirectory(prefix="kvcache-") as name:
            write_project(Path(name), duration_s=6.0)
            found = session(Path(name), width)
        if found.code or found.progress is None:
            print(f"the session ended with {found.code}; progress seen: {found.progress is not None}", file=sys.stderr)
            return 1
        (to / f"stub-{width}-progress.svg").write_text(found.progress, encoding="utf-8")
        (to / f"stub-{width}-end.svg").write_text(found.end, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

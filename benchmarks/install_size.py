"""What installing the plugin alone puts on a disk, by distribution.

    python -m benchmarks.install_size

Makes an environment in a temporary folder, installs this checkout into it with nothing but what it depends on, and adds
up the files that pip recorded, compiled modules included, as the disk holds them (in whole blocks). pip itself is left
out. What a distribution is installed for is the dependency of the plugin that needs it; what several need stands under
"shared".
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]

#: Runs in the new environment, whose only distributions are the plugin and what it brings.
MEASURE = """
import os, re
from importlib.metadata import distributions
from packaging.requirements import Requirement

def key(name):
    return re.sub("[-_.]+", "-", name).lower()

known = {key(found.metadata["Name"]): found for found in distributions()}

def needs(name):
    wanted = map(Requirement, known[name].requires or ())
    return {key(one.name) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})} & set(known)

def closure(name):
    seen, new = set(), {name}
    while new:
        seen |= new
        new = set().union(*map(needs, new)) - seen
    return seen

def size(name):
    files = [found.locate_file(file) for found in [known[name]] for file in found.files or ()]
    return sum(os.stat(file).st_blocks * 512 for file in files if os.path.exists(file)) / 1e6

direct = sorted(needs("pytest-kvcache"))
users = {name: [one for one in direct if name in closure(one)] for name in closure("pytest-kvcache")}
groups = {}
for name, wanted_by in users.items():
    owner = name if name in direct or not wanted_by else wanted_by[0] if len(wanted_by) == 1 else "shared"
    groups.setdefault(owner, []).append((size(name), name))
rows = sorted(((sum(mb for mb, _ in parts), owner, parts) for owner, parts in groups.items()), reverse=True)
total = sum(mb for mb, _, _ in rows)
print(f"{'MB':>6} {'share':>5}  installed for, and its parts from 0.5 MB")
for mb, owner, parts in rows:
    named = ", ".join(f"{name} {one:.1f}" for one, name in sorted(parts, reverse=True) if one >= 0.5)
    print(f"{mb:6.1f} {mb / total:5.0%}  {owner}: {named or '-'}")
print(f"{total:6.1f}  100%  {len(users)} distributions")
"""


def main() -> None:
    """Install into a fresh environment and print the table."""
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([sys.executable, "-m", "venv", name], check=True)
        python = Path(name) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", PROJECT], check=True)
        subprocess.run([python, "-c", MEASURE], check=True)


if __name__ == "__main__":
    main()

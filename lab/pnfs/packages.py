"""Debian packages that the lab is built of: their versions here, and their files. Nothing is installed on the host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_kvcache.errors import SetupError


def versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions that apt would install.

    Raises:
        SetupError: A package is not known.
    """
    done = subprocess.run(
        ["apt-cache", "policy", *names], capture_output=True, encoding="utf-8", check=False, env=_environment()
    )
    found = dict(re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (\S+)$", done.stdout, re.MULTILINE))
    unknown = [name for name in names if found.get(name, "(none)") == "(none)"]
    if unknown:
        raise SetupError(f"apt knows no package {', '.join(unknown)}", where="apt-cache", todo="sudo apt-get update")
    return found


def download(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Download packages into a folder, once for each version; return their files by name.

    Raises:
        SetupError: A package could not be downloaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = versions(names)
    patterns = {name: f"{name}_{version.replace(':', '%3a')}_*.deb" for name, version in known.items()}
    missing = [f"{name}={known[name]}" for name, pattern in patterns.items() if not list(folder.glob(pattern))]
    if missing:
        run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *missing], cwd=folder)
    return {name: next(folder.glob(pattern)) for name, pattern in patterns.items()}


def tools(wanted: Mapping[str, Sequence[str]], folder: Path, downloads: Path) -> Path:
    """Unpack the packages of programs that the host lacks; return the folder like `/usr` that has them.

    Args:
        wanted: Packages by the program that they bring.
        folder: Where they are unpacked.
        downloads: Where packages are downloaded.
    """
    names = [name for program, own in wanted.items() if shutil.which(program) is None for name in own]
    for path in download(names, downloads).values() if names else ():
        run(["dpkg-deb", "-x", str(path), str(folder)])
    return folder / "usr"


def mirror(suite: str) -> str:
    """Return the address of the Debian mirror that the host's apt uses for a release.

    Raises:
        SetupError: The sources name none.
    """
    for path in sorted([*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]):
        for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace")):
            fields = dict(re.findall(r"^(\w[\w-]*):\s*(.*)$", block, re.MULTILINE))
            if suite in fields.get("Suites", "").split():
                return str(fields["URIs"]).split()[0]
            line = re.search(rf"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+{suite}\s", block, re.MULTILINE)
            if line:
                return str(line[1])
    raise SetupError(f"no mirror of {suite} is named", where="/etc/apt/sources.list.d", todo="name one there")


def run(
    argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, log: Path | None = None
) -> None:
    """Run a program of the build.

    Raises:
        SetupError: It failed; the error has the last lines of what it printed.
    """
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if log is not None:
        log.write_text(done.stdout, encoding="utf-8")
    if done.returncode:
        said = " | ".join(done.stdout.strip().splitlines()[-4:])
        raise SetupError(
            f"failed ({done.returncode}): {said}", where=" ".join(argv)[:160], todo=f"see {log}" if log else ""
        )


def _environment(env: Mapping[str, str] | None = None) -> dict[str, str]:

    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **(env or {})}

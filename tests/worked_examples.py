"""The worked examples of docs/api.md: every code block whose first line names a file is one."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
_BLOCK = re.compile(r"^```(?:python|toml)\n# (?P<path>\S+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> dict[str, str]:
    """Return the text of each file that the page shows, by its path in a project."""
    return {found["path"]: found["code"] for found in _BLOCK.finditer(PAGE.read_text(encoding="utf-8"))}


def write(project: Path) -> list[Path]:
    """Write all files into a project and return the Python ones."""
    for path, code in examples().items():
        file = project / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code, encoding="utf-8")
    return sorted(project / path for path in examples() if path.endswith(".py"))

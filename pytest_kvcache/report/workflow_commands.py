"""Annotations of GitHub Actions: lines of the log that are shown at a line of a file, also in a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_kvcache.redaction import redacted

#: What a step may have of each level; the runner drops the rest without a word.
MOST_A_LEVEL = 10
#: The service cuts longer titles (255) and refuses longer messages (64 KiB).
_TITLE_CHARACTERS, _MESSAGE_CHARACTERS = 200, 4000


@dataclass(frozen=True)
class Annotation:
    """One of them.

    Args:
        level: What it is shown as.
        title: Its first line.
        message: Of one line or of several.
        file: Relative to the repository, with `/`; "" where it belongs to none.
        line: In the file, from 1; 0 for the file as a whole.
    """

    level: Literal["error", "warning"]
    title: str
    message: str
    file: str = ""
    line: int = 0

    @property
    def command(self) -> str:
        """The line to print."""
        properties = {"file": self.file, "line": str(self.line) if self.file and self.line else ""}
        properties["title"] = _cut(self.title, _TITLE_CHARACTERS)
        told = ",".join(f"{name}={_property(value)}" for name, value in properties.items() if value)
        return f"::{self.level} {told}::{_data(_cut(self.message, _MESSAGE_CHARACTERS))}"


def limited(annotations: Sequence[Annotation]) -> list[Annotation]:
    """Return as many of each level as a step may have, errors first; the last says how many are left out."""
    kept: list[Annotation] = []
    for level in ("error", "warning"):
        of_level = [each for each in annotations if each.level == level]
        if len(of_level) > MOST_A_LEVEL:
            more = len(of_level) - MOST_A_LEVEL + 1
            told = Annotation(
                of_level[0].level, f"{more} more", f"{more} more of this kind: see the summary of the job"
            )
            of_level = [*of_level[: MOST_A_LEVEL - 1], told]
        kept += of_level
    return kept


def _cut(text: str, most: int) -> str:
    text = _visible(redacted(text))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _visible(text: str) -> str:
    """Return a text whose only control characters are line ends; others could steer the terminal of a log's reader."""
    return "".join(
        each if each.isprintable() or each in "\r\n" else each.encode("unicode_escape", "surrogatepass").decode("ascii")
        for each in text
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

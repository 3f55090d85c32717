"""How far an installation by pip is, from the lines that it prints."""

from __future__ import annotations

import re

_COLLECTING = re.compile(r"^(?:Collecting|Requirement already satisfied:|Processing) (\S+)")
_DOWNLOADING = re.compile(r"^\s+(?:Downloading|Using cached) (\S+)(?: \(([\d.]+) ([kMG]?B)\))?$")
_INSTALLING = re.compile(r"^Installing collected packages: (.*)$")
_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


class PipProgress:
    """What pip does now, in a line for people.

    pip prints a line when it begins with a requirement and one with the size of each file that it fetches. While it
    unpacks, it prints nothing.

    Args:
        requirements: How many are to be installed; 0 where that is not known.
    """

    def __init__(self, requirements: int = 0) -> None:
        self._requirements = requirements
        self._begun = 0
        self._bytes = 0.0

    def read(self, line: str) -> str:
        """Return what is done now, "" where a line of pip's output says nothing of it."""
        if found := _COLLECTING.match(line):
            self._begun += 1
            return self._told(found[1].rpartition("/")[2].partition("==")[0])
        if (found := _DOWNLOADING.match(line)) and not found[1].endswith(".metadata"):
            self._bytes += float(found[2]) * _BYTES[found[3]] if found[2] else 0.0
            size = f" ({found[2]} {found[3]})" if found[2] else ""
            return self._told(f"{found[1].rpartition('/')[2]}{size}")
        if found := _INSTALLING.match(line):
            return f"unpacking {found[1].count(',') + 1} packages, {self._bytes / 1e6:.0f} MB fetched"
        return ""

    def _told(self, what: str) -> str:
        of = f" of {self._requirements}" if self._requirements else ""
        return f"fetching {what}: package {self._begun}{of}, {self._bytes / 1e6:.0f} MB so far"

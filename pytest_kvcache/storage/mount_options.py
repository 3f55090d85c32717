"""Mount options as the kernel's tables show them, and what those of NFS mean for reads that ask no server (nfs(5))."""

from __future__ import annotations

from collections.abc import Mapping


def parse_options(text: str) -> dict[str, str]:
    """Return mount options by name; an option without a value has ""."""
    pairs = (item.partition("=") for item in text.strip(" \t\n").split(",") if item)
    return {key: value for key, _, value in pairs}


def nfs_version(options: Mapping[str, str]) -> tuple[int, int]:
    """Return the NFS version that mount options give, for instance (4, 2); (0, 0) where they give none."""
    major, _, minor = options.get("vers", "").partition(".")
    # Kernels before 3.19 wrote vers=4,minorversion=1.
    return whole(major), whole(minor or options.get("minorversion", ""))


def whole(text: str, default: int = 0) -> int:
    """Return the number that digits of ASCII give, `default` for all other text."""
    return int(text) if text.isascii() and text.isdigit() else default


def page_cache_options(options: Mapping[str, str]) -> list[str]:
    """Return what in an NFS mount's options lets reads be served without asking the server."""
    found = []
    if "fsc" in options:
        found.append("fsc: reads may come from a cache on the local disk")
    if "nosharecache" not in options:
        found.append("no nosharecache: mounts of one export share one page cache")
    if _are_cached(options, "acregmax"):
        found.append("no noac or actimeo=0: attributes are cached, pages stay valid with them")
    elif _are_cached(options, "acdirmax"):
        found.append("acdirmax: attributes of folders are cached, a new file may stay unseen for a while")
    if options.get("lookupcache", "all") not in {"none", "pos", "positive"}:
        found.append("lookupcache=all: a file that was looked for in vain may stay unseen for a while")
    return found


def _are_cached(options: Mapping[str, str], longest: str) -> bool:
    """Return whether attributes are kept, of files (`acregmax`) or of folders (`acdirmax`).

    The kernel shows `actimeo=0` as the four limits that it sets. A longest time of zero is the shortest time too.
    """
    return "noac" not in options and options.get("actimeo") != "0" and options.get(longest) != "0"

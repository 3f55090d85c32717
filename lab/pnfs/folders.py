"""Where the lab keeps what it built and what it is running."""

from __future__ import annotations

from pathlib import Path

from pytest_kvcache.home import home


def base() -> Path:
    """Return the lab's folder in the plugin's home."""
    return home() / "pnfs-lab"


def runs() -> Path:
    """Return the folder of all labs that are up, or were killed."""
    return base() / "runs"


def control_of(run: Path) -> Path:
    """Return the folder by which a lab and its guest exchange files; the guest sees it as `/lab`."""
    return run / "control"


#: Where the guest sees the control folder.
GUEST_CONTROL = "/lab"

"""Where a node keeps its journals and port leases."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_OTHER = re.compile(r"[^A-Za-z0-9.-]+")


def node_home(home: Path) -> Path:
    """Return the folder of this node below the plugin's home.

    A home is often shared by all nodes of a cluster, and processes that another node's journal names cannot be looked
    for here: so each node has a folder named after it.

    Args:
        home: The plugin's home, as this node sees it.
    """
    return home / "nodes" / (_OTHER.sub("-", platform.node()) or "node")

"""`python -m pytest_kvcache.serving.nodes DESCRIPTOR`: the process that talks to Ray.

The broker is imported and not run itself: Ray sends classes of a main module by value, and this one is to be found on
each node as it is there.
"""

from __future__ import annotations

import sys

from pytest_kvcache.serving.nodes import broker

if __name__ == "__main__":
    broker.main(int(sys.argv[1]))

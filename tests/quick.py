"""What tests without the real engine need: they run many sessions in one process, and start hundreds of small ones."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from hypothesis import settings

# A slow machine is no fault of an example.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# What a session computes is small, and the threads of a matrix library would wait for more on other tests' processors.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# They start hundreds of Python processes, and each would compile the plugin anew where nobody wants bytecode beside the
# sources. The real engine's modules, which these tests never import, would fill the folder.
if sys.dont_write_bytecode:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parents[1] / "build" / "bytecode")


def pytest_collection_finish() -> None:
    """Leave what is loaded by now out of the search for garbage.

    pytest searches five times at the end of each session, and hundreds of them run in this process: it was a tenth of
    the time of all unit tests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)

"""What a perf session loads before its first boot."""

from __future__ import annotations

import subprocess
import sys


def test_a_session_does_not_load_what_it_does_not_need() -> None:
    """Distributions come from scipy.special: scipy.stats would be a third of the time to a session's first line."""
    code = (
        "import sys, pytest_kvcache.activation; print(*sorted({'scipy.stats', 'matplotlib', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

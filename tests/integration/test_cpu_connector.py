"""The connector for CPU tensors, in the engine environment that `setup` has put it in, on LMCache's real memory."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("connector_cases.py")
LAYOUTS, BLOCKS, DTYPES = ("0.32", "0.11", "0.10"), (128, 32), ("float32", "bfloat16", "fp8")
#: Each is described where it is defined.
CASES = (
    *(f"round trip {layout} {block} {dtype}" for layout, block, dtype in itertools.product(LAYOUTS, BLOCKS, DTYPES)),
    *(f"vLLM has a part {layout} {block}" for layout, block in itertools.product(LAYOUTS, BLOCKS)),
    *(f"LMCache's engines {block}" for block in (128, 64)),
    *("refused chunks", "refused layouts", "refused configurations", "hooked", "identity"),
)


@pytest.fixture(scope="module")
def found(real_engine: Path) -> dict[str, str]:
    """What each case found: "" where it held."""
    argv = [str(real_engine / "bin" / "python"), str(SCRIPT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, str] = json.loads(done.stdout.partition("RESULT ")[2])
    return result


@pytest.mark.parametrize("case", CASES)
def test_the_connector(found: dict[str, str], case: str) -> None:
    """The case holds: KV comes back to the byte, what is not the request's is untouched, what cannot be is refused."""
    assert found[case] == ""


def test_no_case_is_forgotten(found: dict[str, str]) -> None:
    """Every case of the script is a test here."""
    assert set(found) == set(CASES)


def test_vllm_finds_it(real_engine: Path) -> None:
    """In the environment of `setup` it is one of vLLM's general plugins, and loading it imports nothing of LMCache."""
    code = (
        "import importlib.metadata as m, sys; "
        "(found,) = m.entry_points(group='vllm.general_plugins', name='lmcache_cpu_connector'); "
        "found.load(); print(sorted({n.partition('.')[0] for n in sys.modules} & {'lmcache', 'torch', 'vllm'}))"
    )
    argv = [str(real_engine / "bin" / "python"), "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr

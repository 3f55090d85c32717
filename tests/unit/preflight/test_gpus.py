"""What is said of GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_kvcache.preflight import gpus
from pytest_kvcache.preflight.others import Others
from pytest_kvcache.telemetry.allotment import allotment
from tests.unit.test_allotment import APPS, LISTING
from tests.unit.test_tiers import QWEN

#: As `nvidia-smi --query-gpu=… --format=csv,noheader,nounits` prints it.
H100 = "0, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4, 345, 1980, 700.00, 700.00, Enabled, 0, Disabled\n"
L4 = "1, NVIDIA L4, 550.54.15, 23034, 2, 210, 2040, 72.00, 72.00, [N/A], [N/A], [N/A]\n"


def test_gpus_as_nvidia_smi_prints_them() -> None:
    """Every field is read, and what a GPU does not say is None and no fault."""
    first, second = gpus.parse_gpus(H100 + L4)
    assert (first.name, first.driver, first.memory_mib, first.ecc) == (
        "NVIDIA H100 80GB HBM3",
        "550.54.15",
        81559,
        True,
    )
    assert (second.uncorrected, second.ecc, second.mig, second.power_w) == (None, False, False, 72)
    found = gpus.gpus(2, query=lambda: H100 + L4)
    assert found.status == "pass"
    assert "0: NVIDIA H100 80GB HBM3, 80 GiB, 345 of 1980 MHz, 700 W, ECC" in found.found


@pytest.mark.parametrize(
    ("old", "new", "status", "fault"),
    [
        ("Enabled, 0,", "Enabled, 3,", "fail", "3 uncorrected memory errors"),
        ("Disabled", "Enabled", "warn", "cut into MIG instances"),
        ("700.00, 700.00", "400.00, 700.00", "warn", "limited to 400 of 700 W"),
        (", 4, 345", ", 60000, 345", "warn", "60000 MiB in use by others"),
    ],
)
def test_faults_of_gpus(old: str, new: str, status: str, fault: str) -> None:
    """Memory errors fail; MIG, a lowered power limit and memory in use are warned of."""
    found = gpus.gpus(1, query=lambda: H100.replace(old, new))
    assert (found.status, fault in found.found) == (status, True)


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that needs more than there are fails, with or without nvidia-smi; one for the CPU asks nothing."""
    assert gpus.gpus(2, query=lambda: H100).found.startswith("1 of 2: ")
    assert gpus.gpus(0).status == "pass"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(gpus, "models", list)
    assert gpus.gpus(2).status == "fail"
    monkeypatch.setattr(gpus, "models", lambda: ["AMD GPU", "AMD GPU"])
    assert gpus.gpus(2).status == "warn"


H100S = H100 + H100.replace("0, NVIDIA", "1, NVIDIA")


def says(argv: Sequence[str]) -> str:
    """Stand for `nvidia-smi`, whose list and processes are those of the tests of allotments."""
    return LISTING if argv == ("nvidia-smi", "-L") else APPS


@pytest.mark.parametrize(
    ("value", "status", "said"),
    [
        ("0", "fail", "2 needed, 1 allotted by CUDA_VISIBLE_DEVICES=0"),
        ("", "fail", "2 needed, 0 allotted"),
        ("0,0", "fail", "0 is there twice"),
        ("1,0", "pass", "0: NVIDIA H100"),
        ("0,1,2", "pass", "1: NVIDIA H100"),
        ("0,7", "fail", "no GPU 7 (CUDA_VISIBLE_DEVICES=0,7); here: 0: NVIDIA"),
        ("GPU-8932f937,GPU-3c1f5b0e", "pass", "1: NVIDIA H100"),
        ("GPU-8932f937,GPU-ffff", "fail", "no GPU GPU-ffff"),
        ("GPU-8932f937,GPU-", "fail", "no GPU GPU-"),
        ("MIG-c7384736,MIG-a28ad590", "pass", "0: NVIDIA H100"),
    ],
)
def test_the_gpus_of_an_allotment(value: str, status: str, said: str) -> None:
    """Those that servers will be given are looked at; names that mean none, or two, are told."""
    allowed = allotment({"CUDA_VISIBLE_DEVICES": value})
    found = gpus.gpus(2, query=lambda: H100S, allowed=allowed, others=Others(says))
    assert (found.status, said in found.found) == (status, True), found


@pytest.mark.parametrize(
    ("used_mib", "share", "status"),
    [(4, 0.92, "pass"), (900, 0.999, "pass"), (5000, 0.92, "warn"), (60000, 0.92, "fail"), (60000, None, "warn")],
)
def test_a_gpu_that_another_process_fills(used_mib: int, share: float | None, status: str) -> None:
    """Where vLLM would not find the memory that it asks for, no pair is booted; the process is named with its pid."""
    query = H100S.replace("1, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4,", f"1, NVIDIA H100, 5, 81559, {used_mib},")
    found = gpus.gpus(
        1, query=lambda: query, allowed=allotment({"CUDA_VISIBLE_DEVICES": "1"}), share=share, others=Others(says)
    )
    assert found.status == status, found
    assert (status != "pass") == ("in use by others: python (pid 4711, 60000 MiB)" in found.found)
    beside = gpus.gpus(
        1, query=lambda: query, allowed=allotment({"CUDA_VISIBLE_DEVICES": "0"}), share=share, others=Others(says)
    )
    assert beside.status == "pass"


@pytest.mark.parametrize(
    ("args", "status"),
    [((), "fail"), (("--gpu-memory-utilization", "0.2"), "warn"), (("--kv-cache-memory-bytes=1g",), "warn")],
)
def test_how_much_must_be_free(
    args: tuple[str, ...], status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM asks for is what the profile's arguments say; what blocks a boot is a failure."""
    full = H100S.replace("81559, 4,", "81559, 60000,")
    answers = {"-L": LISTING, "*apps*": APPS, "*": full}
    cases = "".join(f"{pattern}) cat <<'E'\n{text}E\n;;\n" for pattern, text in answers.items())
    script = f"#!/bin/sh\ncase $1 in\n{cases}esac\n"
    (tmp_path / "nvidia-smi").write_text(script)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    profile = QWEN.model_copy(update={"vllm_args": args})
    assert gpus.of_profile(profile, {}).status == status
    assert bool(gpus.blocking(profile, {})) == (status == "fail")
    assert "pid 4711" in gpus.of_profile(profile, {}).found

"""A session on the lab: LMCache in a guest, on two pNFS mounts over soft-RoCE. Correctness, not performance."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.pnfs import folders, host, network, perf
from lab.pnfs.tier import SHORT_LABEL

pytestmark = pytest.mark.engine

#: Size of a chunk's file: 128 tokens of 4 layers, K and V, 2 heads of 64 numbers of 4 bytes.
CHUNK = 128 * 4 * 2 * 2 * 64 * 4


@dataclass(frozen=True)
class Ran:
    """A session of the lab that has ended.

    Args:
        code: Its exit code.
        output: What it printed.
        facts: Content of its run.json.
        probes: Content of its probes.json.
        boot: Folder of its boot.
    """

    code: int
    output: str
    facts: dict[str, Any]
    probes: dict[str, Any]
    boot: Path

    @property
    def claimed(self) -> dict[str, float]:
        """What LMCache says that it stored and loaded (bytes)."""
        found: dict[str, float] = self.facts["proof"]["storage"]["claimed_bytes"]
        return found

    @property
    def counted(self) -> dict[str, float]:
        """What the storage counted."""
        found: dict[str, float] = self.facts["proof"]["storage"]["figures"]
        return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One session with one boot and one load; all tests read what it left."""
    if lacking := host.lacking(build=False):
        pytest.skip("; ".join(lacking))
    folder = tmp_path_factory.mktemp("lab")
    done = subprocess.run(
        [
            sys.executable, "-m", "lab.pnfs.perf", "--target", "perf", "-v",
            f"--kv-runs={folder / 'runs'}", f"--kv-baselines={folder / 'baselines'}", "--kv-allow-suspect",
        ],
        cwd=perf.REPOSITORY, env=os.environ, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    found = sorted((folder / "runs").rglob("boot-1/context-*/run.json"))
    assert len(found) == 1, output
    facts = json.loads(found[0].read_text())
    probes = json.loads((found[0].parents[1] / "probes.json").read_text())
    return Ran(done.returncode, output, facts, probes, found[0].parents[1])


def test_the_load_is_valid(ran: Ran) -> None:
    """Probes, ledger and the storage's account find nothing that speaks against the load."""
    assert ran.facts["faults"] == []
    assert ran.probes["faults"] == []
    assert ran.code == 0, ran.output


def test_servers_share_the_export_and_answer_alike(ran: Ran) -> None:
    """A prompt that one server stored by its mount comes to the other by the other mount, with the same answer."""
    asked = [each for each in ran.probes["asked"] if each["step"] == "across"]
    assert len(asked) == 2
    for each in asked:
        assert each["tokens"]["l2"] >= each["prompt_tokens"] // 128 * 128 - 128
    assert ran.probes["largest_logprob_difference"]["the shared storage"] < 1e-4


def test_what_was_stored_to_the_byte(ran: Ran) -> None:
    """LMCache's bytes, the mounts' own counters and the writes by layout agree to the byte: a WRITE a chunk."""
    stored = ran.claimed["stored"]
    assert stored > 100 * CHUNK
    assert stored % CHUNK == 0
    assert ran.counted["mount_written_bytes"] == stored
    assert ran.counted["pnfs_writes"] == stored / CHUNK
    assert ran.counted["file_bytes"] == ran.counted["files"] * CHUNK


def test_what_was_loaded_to_the_byte(ran: Ran) -> None:
    """LMCache's loads and the reads of the mounts agree to the byte."""
    loaded = ran.claimed["loaded"]
    assert loaded > 100 * CHUNK
    assert loaded % CHUNK == 0
    assert ran.counted["mount_read_bytes"] == loaded
    assert ran.counted["pnfs_reads"] == loaded / CHUNK


def test_all_went_by_the_layout(ran: Ran) -> None:
    """No WRITE and no READ went through the metadata server."""
    assert (ran.counted["other_writes"], ran.counted["other_reads"]) == (0, 0)
    assert ran.counted["layoutget"] > 0


def test_it_says_what_it_is(ran: Ran) -> None:
    """Output, record and facts for comparisons say that no figure is a real mount's."""
    assert f"pnfs-lab ({SHORT_LABEL})" in ran.output
    assert ran.facts["label"] == f"pnfs-lab ({SHORT_LABEL})"
    assert "soft-RoCE" in ran.facts["launcher"]["label"]
    assert "soft-RoCE" in ran.facts["comparability"]["storage.lab"]
    assert ran.facts["comparability"]["storage.mount"] == "nfs v4.2 over rdma, LAYOUT_FLEX_FILES"


def test_logs_of_the_guest_are_kept(ran: Ran) -> None:
    """What the LMCache servers wrote in the guest is in the run's folder."""
    for name in ("lmcache-0", "lmcache-1"):
        assert (ran.boot / "logs" / f"{name}.log").stat().st_size > 0


def test_the_guests_work_is_the_runs(ran: Ran) -> None:
    """The guest is none of the programs that make a run suspect of other work beside it."""
    assert not any(each["name"].startswith("linux") for each in ran.facts["other_work"]["top"])


def test_nothing_is_left(ran: Ran) -> None:
    """The session's end has taken the lab down: no record, no namespace, and with it no process."""
    found = re.search(r"lab ([0-9a-f]+) is up", ran.output)
    assert found is not None, ran.output
    assert not (folders.runs() / found[1]).exists()
    assert not network.exists(f"kvlab-{found[1]}")

"""Two servers store the same chunks into one folder at the same time, by LMCache's own code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.serving.render import render
from pytest_kvcache.storage.folder import FolderAccount
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.tiers.fs import FsTier
from tests.integration.race_of_stores import CHUNK_BYTES, CHUNKS

SCRIPT = Path(__file__).with_name("race_of_stores.py")


def configs(folder: Path, mode: str) -> list[dict[str, Any]]:
    """Return what each server's LMCache is given on a tier below `folder`."""
    profile = catalogue.load(None).profile("cpu-tiny").model_copy(update={"lmcache_mode": mode})
    shown = json.loads(render(profile, FsTier(name="x", kind="fs", path=folder), None, {}, as_json=True))
    if mode == "in-process":
        servers = [each for each in shown["components"] if each["files"]]
        return [{"yaml": text, "env": each["env"]} for each in servers for text in each["files"].values()]
    argvs = [each["argv"] for each in shown["components"] if each["name"].startswith("lmcache")]
    return [{"adapter": json.loads(argv[argv.index("--l2-adapter") + 1])} for argv in argvs]


@pytest.mark.parametrize("mode", ["in-process", "mp"])
def test_no_store_fails(real_engine: Path, tmp_path: Path, mode: str) -> None:
    """What both servers store at once is stored, once; with one temporary name for both up to 50 of 120 failed."""
    given = configs(tmp_path, mode)
    assert len(given) == 2
    argv = [str(real_engine / "bin" / "python"), str(SCRIPT)]
    done = subprocess.run(argv, input=json.dumps(given), capture_output=True, text=True, check=False, timeout=300)
    assert "RESULT" in done.stdout, done.stderr[-3000:]
    assert json.loads(done.stdout.partition("RESULT ")[2]) == [0, 0], done.stderr[-3000:]
    (folder,) = tmp_path.iterdir()
    said = FolderAccount(folder).read()
    assert (said.files, said.bytes) == (CHUNKS, CHUNKS * CHUNK_BYTES)

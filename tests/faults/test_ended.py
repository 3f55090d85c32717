"""A component that dies under load."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.faults.sessions import RULES, assert_no_secret, assert_refused, component, prepare, run
from tests.projects import Project, Session

pytestmark = pytest.mark.engine


def keys_of(process: psutil.Process) -> list[str]:
    """Return the access key and the secret key of an S3 server."""
    return process.environ()["RCLONE_AUTH_KEY"].strip('"').split(",")


def test_the_s3_server_is_killed(project: Project, kvcache_home: Path, real_engine: Path) -> None:
    """A dead S3 server is named with the signal that ended it; what was measured until then is kept."""
    prepare(project, real_engine)
    keys: list[str] = []

    def breaks(session: Session) -> None:
        server = component(session, "s3")[0]
        keys.extend(keys_of(server))
        server.kill()

    ended = run(project, kvcache_home, "--tier", "s3", breaks=breaks)
    print(ended.output)
    assert_refused(ended, "s3.log: s3 ended while serving: it was killed (SIGKILL)", "OOM killer")
    assert (ended.rows("s3")["status"] == "ok").any()
    assert_no_secret(ended, keys)


def test_an_lmcache_server_is_killed(project: Project, kvcache_home: Path, real_engine: Path) -> None:
    """A dead LMCache server is named with the signal that ended it; what was measured until then is kept."""
    prepare(project, real_engine)
    ended = run(
        project, kvcache_home, "--tier", "pnfs", breaks=lambda session: component(session, "lmcache-1")[0].kill()
    )
    print(ended.output)
    assert_refused(ended, "lmcache-1.log: lmcache-1 ended while serving: it was killed (SIGKILL)", "OOM killer")
    assert (ended.rows("pnfs")["status"] == "ok").any()


def test_a_vllm_server_is_killed(project: Project, kvcache_home: Path, real_engine: Path) -> None:
    """A dead vLLM server is named with the signal that ended it; what was measured until then is kept."""
    prepare(project, real_engine)
    ended = run(project, kvcache_home, "--tier", "cpu", breaks=lambda session: component(session, "vllm-1")[0].kill())
    print(ended.output)
    assert_refused(ended, "vllm-1.log: vllm-1 ended while serving: it was killed (SIGKILL)", "OOM killer")
    assert (ended.rows("cpu")["status"] == "ok").any()


@pytest.mark.parametrize(
    ("own_process", "said"),
    [
        pytest.param("0", "engine core exited unexpectedly", id="in the engine's process"),
        pytest.param("1", "VllmWorker-0 died unexpectedly", id="in a process of its own"),
    ],
)
def test_a_vllm_worker_is_killed(
    project: Project, kvcache_home: Path, real_engine: Path, own_process: str, said: str
) -> None:
    """Where the process that holds the model dies, as the kernel's OOM killer has it, its server is named."""
    variable = f'[profiles.faults.env]\nVLLM_ENABLE_V1_MULTIPROCESSING = "{own_process}"\n'
    prepare(project, real_engine, rules=RULES + variable)

    def breaks(session: Session) -> None:
        max(component(session, "vllm-0"), key=lambda p: p.memory_info().rss).kill()

    ended = run(project, kvcache_home, "--tier", "gpu", breaks=breaks)
    print(ended.output)
    assert_refused(ended, "vllm-0.log: vllm-0 ended while serving", said, "OOM killer")
    assert (ended.rows("gpu")["status"] == "ok").any()

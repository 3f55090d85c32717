"""An agent on its node: it starts, tells and ends; and when it is killed, its watchdog ends all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_kvcache.errors import BootError, KvCacheError
from pytest_kvcache.runs import processes
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.nodes import agent as agents
from pytest_kvcache.serving.nodes.agent import NodeAgent
from pytest_kvcache.serving.nodes.facts import Progress
from pytest_kvcache.serving.nodes.following import Followed, Follower, NodeHandle
from pytest_kvcache.serving.nodes.home import node_home

WRITES = "import time\nfor i in range(1000): print('line', i, flush=True); time.sleep(0.01)"


def python(name: str, code: str) -> Component:
    """Return a component that runs code."""
    return Component(name, (sys.executable, "-c", code), "servers", place="kv-1")


@pytest.fixture
def agent(kvcache_home: Path) -> Iterator[NodeAgent]:
    """An agent on this machine."""
    made = NodeAgent("127.0.0.1")
    yield made
    if made._session.scratch.exists():
        made.close()


def wait(until: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_output_comes_while_a_component_runs(agent: NodeAgent) -> None:
    """What a component writes can be read at once, and from where the last reading ended."""
    agent.start(python("a", WRITES))
    wait(lambda: agent.progress({}).output.get("a"))
    first = agent.progress({}).output["a"]
    wait(lambda: agent.progress({"a": len(first)}).output.get("a"))
    assert (first + agent.progress({"a": len(first)}).output["a"]).startswith(b"line 0\nline 1\n")
    assert agent.progress({}).codes == {"a": None}


def test_exit_codes_and_signals(agent: NodeAgent) -> None:
    """An exit code is told as it is, and a signal as a negative number."""
    agent.start(python("three", "import sys; sys.exit(3)"))
    agent.start(python("killed", "import os; os.kill(os.getpid(), 9)"))
    wait(lambda: None not in agent.progress({}).codes.values())
    assert agent.progress({}).codes == {"three": 3, "killed": -9}


def test_an_agent_leaves_nothing(agent: NodeAgent, kvcache_home: Path) -> None:
    """After its end there is no process, no folder, no journal and no lease."""
    agent.start(python("a", WRITES))
    (pid,) = [each.pid for each in processes.members(agent._session.journal.record.leaders)]
    assert len(set(agent.ports(5))) == 5
    scratch = agent.facts().scratch
    assert agent.close() == []
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert not scratch.exists()
    assert [path for path in node_home(kvcache_home).rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert list(node_home(kvcache_home).glob("runs/*")) == []


KILLED = """
import sys, time
from pathlib import Path
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.nodes.agent import NodeAgent
agent = NodeAgent("127.0.0.1")
inner = "import time; print('HERE', flush=True); time.sleep(300)"
outer = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {inner!r}]); time.sleep(300)"
agent.start(Component("a", (sys.executable, "-c", outer), "servers"))
while b"HERE" not in agent.progress({}).output.get("a", b""):
    time.sleep(0.05)
print(agent.facts().scratch, flush=True)
time.sleep(300)
"""


def started(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    """Run an agent in a process of its own, with a component and its child; return it and its scratch folder."""
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def running(scratch: Path) -> list[psutil.Process]:
    """Return the processes that work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(scratch):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_killed_agent_takes_all_with_it(kvcache_home: Path, tmp_path: Path) -> None:
    """Ray kills an agent when pytest dies: its watchdog ends components and their children, and removes the folder."""
    process, scratch = started(tmp_path)
    assert len(running(scratch)) == 2
    process.kill()
    process.wait()
    wait(lambda: not scratch.exists() and not running(scratch))
    wait(lambda: not list(node_home(kvcache_home).glob("journal/*.json")))
    assert process.stdout is not None
    process.stdout.close()


def test_the_next_run_ends_what_no_watchdog_ended(kvcache_home: Path, tmp_path: Path) -> None:
    """Where the watchdog was killed too, the sweep of the next run ends and removes all of it, and says so."""
    process, scratch = started(tmp_path)
    for other in psutil.process_iter():
        if any("nodes.watchdog" in word for word in _words(other)) and str(kvcache_home) in " ".join(_words(other)):
            other.kill()
    process.kill()
    process.wait()
    assert len(running(scratch)) == 2
    (line,) = agents.sweep()
    assert "which was killed: 2 processes ended, 2 folders removed" in line
    assert not scratch.exists()
    assert running(scratch) == []
    assert process.stdout is not None
    process.stdout.close()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_functions_of_this_package_alone(agent: NodeAgent) -> None:
    """An agent calls functions of this package by name, and none of any other."""
    called = agent.call("pytest_kvcache.serving.nodes.home:node_home", {"home": Path("/x")})
    assert called == node_home(Path("/x"))
    with pytest.raises(ValueError, match="none of this package's modules"):
        agent.call("os:system", {"command": "true"})


class Silent:
    """An agent that answers so often, and then no more."""

    def __init__(self, *answers: Progress) -> None:
        self.answers = list(answers)

    def __call__(self, _: object) -> Progress:
        """Answer, or be lost."""
        if not self.answers:
            raise KvCacheError("the node was lost, or its agent was killed")
        return self.answers.pop(0)


def test_a_lost_node_is_named(agent: NodeAgent, tmp_path: Path) -> None:
    """A node that does not answer ends what waits for its components, with its name and what was on it."""
    followed = Followed(agent.facts(), Silent(Progress({"vllm-0": None}, {"vllm-0": b"so far\n"})))
    handle = NodeHandle(python("vllm-0", ""), tmp_path / "vllm-0.log", followed)
    followed.add("vllm-0", handle.log)
    followed.update()
    assert handle.exit_code() is None
    assert handle.log.read_bytes() == b"so far\n"
    followed.update()
    with pytest.raises(BootError, match=r"node .* \(127\.0\.0\.1\) was lost, with vllm-0: the node was lost"):
        handle.exit_code()


def test_a_code_is_known_once_the_log_is_whole(tmp_path: Path, agent: NodeAgent) -> None:
    """Output that is longer than one answer is fetched before the end of its component is told."""
    long, rest = b"x" * (1 << 20), b"the cause\n"
    followed = Followed(agent.facts(), Silent(Progress({"a": 1}, {"a": long}), Progress({"a": 1}, {"a": rest})))
    log = tmp_path / "a.log"
    followed.add("a", log)
    followed.update()
    assert followed.code("a") == 1
    assert log.read_bytes() == long + rest


def test_a_follower_brings_what_is_written(tmp_path: Path, agent: NodeAgent) -> None:
    """The run's log grows while the component runs, and a component that ends is noticed."""
    followed = Followed(agent.facts(), agent.progress)
    follower = Follower([followed], every_s=0.05)
    agent.start(python("a", "import time; print('one', flush=True); time.sleep(1); print('two')"))
    log = tmp_path / "a.log"
    followed.add("a", log)
    wait(lambda: log.exists() and log.read_text() == "one\n")
    wait(lambda: followed.code("a") == 0)
    assert log.read_text() == "one\ntwo\n"
    follower.close()


def test_a_restarted_component_goes_on_in_its_log(tmp_path: Path, agent: NodeAgent) -> None:
    """What the second process writes comes after what the first one wrote, once."""
    followed = Followed(agent.facts(), agent.progress)
    log = tmp_path / "a.log"
    for number in (1, 2):
        agent.start(python("a", f"print({number})"))
        followed.add("a", log)
        while followed.code("a") is None:
            followed.update()
            time.sleep(0.05)
        agent.stop(["a"])
    assert log.read_text() == "1\n2\n"


def test_signals_of_the_terminal_do_not_reach_a_watchdog(kvcache_home: Path, agent: NodeAgent) -> None:
    """It has a session of its own, which no Ctrl-C of a terminal reaches."""
    (found,) = [p for p in psutil.process_iter() if str(node_home(kvcache_home)) in " ".join(_words(p))]
    assert os.getsid(found.pid) not in {os.getsid(0), os.getpid()}

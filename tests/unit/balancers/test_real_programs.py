"""The real haproxy and nginx of Debian, in front of stub servers: what their parsers take, and what they do."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
import requests

from pytest_kvcache.config.balancer import POLICIES
from pytest_kvcache.engine.environment import Engine, on_path
from pytest_kvcache.load import validity, worker
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.table import read
from pytest_kvcache.preflight import balancer as preflight
from pytest_kvcache.probes import balancer_latency
from pytest_kvcache.proof.routing import Routing, check_routing
from pytest_kvcache.runs.ports import free_ports
from pytest_kvcache.serving.balancers import kinds
from pytest_kvcache.serving.balancers.base import Front
from pytest_kvcache.serving.balancers.version import version_of
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.workload.multi_round import MultiRoundQa
from tests.stubs.server import stub_server
from tests.unit.balancers.make import WITH_CONFIGURATION, settings

PROGRAMS = {name: on_path(name) for name in ("haproxy", "nginx")}
#: A server takes so long between two tokens (s): a stream that is held back comes all at once.
ITL_S = 0.05


def needs(kind: str) -> None:
    """Skip the test where the program is not on this machine."""
    if PROGRAMS[kind] is None:
        pytest.skip(f"{kind} is not on this machine: {kinds.KINDS[kind].install}")  # type: ignore[index]


class Machine:
    """Programs of this machine."""

    def program(self, name: str) -> str:
        """Return the path."""
        return str(PROGRAMS[name])


@dataclass
class Running:
    """A running balancer.

    Args:
        url: Where it listens, without /v1.
        metrics_url: Its counters.
        servers: Base URL of each stub by name.
        process: The balancer's first process.
        log: What it wrote.
        folder: Where its files are.
        opened: Connections to it.
    """

    url: str
    metrics_url: str
    servers: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path
    folder: Path
    opened: list[HTTPConnection] = field(default_factory=list)

    def connect(self) -> HTTPConnection:
        """Return a connection to it, which is closed with it."""
        self.opened.append(HTTPConnection(self.url.removeprefix("http://"), timeout=20))
        return self.opened[-1]


@contextlib.contextmanager
def running(kind: str, policy: str, folder: Path, *stubs: str, template: Path | None = None) -> Iterator[Running]:
    """Run a balancer in front of two stubs, as a launcher would."""
    needs(kind)
    scratch = folder / "scratch"
    scratch.mkdir(mode=0o700)
    more = {"template": str(template), "promises": "turns"} if template else {}
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(stub_server(folder, "--response-role", f"assistant@{name}", *stubs))
            for name in ("vllm-0", "vllm-1")
        }
        ports = iter(free_ports(2))
        front = Front(servers, "127.0.0.1", lambda: next(ports), scratch, Machine())
        plan = kinds.plan(settings(kind, policy, **more), front)
        component = plan.component
        assert component is not None
        for each in component.folders:
            each.mkdir(mode=0o700)
        for path, text in component.files.items():
            path.write_text(text)
        log = folder / "balancer.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                component.argv, cwd=scratch, stdout=output, stderr=output, env={**os.environ, **component.env}
            )
        try:
            deadline = time.monotonic() + 20
            assert component.ready_url is not None
            while not _is_ready(component.ready_url):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            front_url = plan.base_urls[0].removesuffix("/v1")
            balancer = Running(front_url, plan.metrics_url, servers, process, log, scratch)
            yield balancer
            for connection in balancer.opened:
                connection.close()
        finally:
            process.terminate()
            process.wait(20)


def _is_ready(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).status_code == 200
    except requests.RequestException:
        return False


def _end(url: str) -> None:
    """End the stub that listens there, and wait until nobody does."""
    port = int(url.rpartition(":")[2])
    (found,) = [
        each
        for each in psutil.Process().children(recursive=True)
        if any(one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in each.net_connections())
    ]
    found.terminate()
    deadline = time.monotonic() + 20
    while _is_ready(f"{url}/health"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ask(connection: HTTPConnection, user: str = "", tokens: int = 1) -> tuple[str, list[float]]:
    """Stream an answer; return the server that answered, and when each piece of the answer came (s)."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, "stream": True}
    headers = {"Content-Type": "application/json", **({"x-user-id": user} if user else {})}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    if answer.status != 200:
        answer.read()
        return f"HTTP {answer.status}", []
    text, times = b"", []
    while piece := answer.read1():
        times.append(time.monotonic())
        text += piece
    return text.partition(b"assistant@")[2][:6].decode(), times


@pytest.mark.parametrize(("kind", "policy"), WITH_CONFIGURATION)
def test_the_program_itself_takes_its_configuration(tmp_path: Path, kind: str, policy: str) -> None:
    """`haproxy -c` and `nginx -t` take the configuration of every policy that is known, and tell their version."""
    needs(kind)
    profile = catalogue.load(None).profile("cpu-tiny").model_copy(update={"balancer": settings(kind, policy)})
    engine = Engine(tmp_path, {"vllm": "0"})
    found = preflight.balancer(engine, profile)
    assert found.status == "pass", found
    version = version_of(profile.balancer, engine)
    assert version[0].isdigit()
    assert found.found.startswith(f"{kind} {policy} {version}: ")


@pytest.mark.parametrize(
    ("kind", "policy", "said"),
    [
        ("haproxy", "rondrobin", "balance only supports 'roundrobin'"),
        ("nginx", "leest_conn", 'unknown directive "leest_conn"'),
        ("nginx", "random three", 'invalid parameter "three"'),
    ],
)
def test_a_policy_that_the_program_does_not_know_stops_before_a_boot(
    tmp_path: Path, kind: str, policy: str, said: str
) -> None:
    """A misspelt policy is told before anything boots, in the program's own words."""
    needs(kind)
    profile = catalogue.load(None).profile("cpu-tiny").model_copy(update={"balancer": settings(kind, policy)})
    found = preflight.balancer(Engine(tmp_path, {"vllm": "0"}), profile)
    assert found.status == "fail"
    assert found.found.startswith(f"{kind} refuses balancer.policy '{policy}': ")
    assert said in found.found


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_streams_are_passed_on_piece_by_piece(tmp_path: Path, kind: str) -> None:
    """Tokens arrive one by one as the server sends them, over a connection that is kept for the next request."""
    with running(kind, "", tmp_path, "--stub-itl", str(ITL_S)) as balancer:
        connection = balancer.connect()
        connection.connect()
        first = connection.sock
        for _ in range(3):
            _, times = ask(connection, tokens=8)
            assert times[-1] - times[0] > 4 * ITL_S  # one that is held back comes at once
            assert connection.sock is first


@pytest.mark.parametrize(
    ("kind", "policy"),
    [each for each in WITH_CONFIGURATION if POLICIES[each[0]][each[1]] == "turns"],
)
def test_two_servers_get_equal_turns(tmp_path: Path, kind: str, policy: str) -> None:
    """With a policy of turns the servers alternate, over kept connections as over new ones."""
    with running(kind, policy, tmp_path) as balancer:
        kept = balancer.connect()
        servers = [ask(kept)[0] for _ in range(10)]
        for _ in range(10):
            fresh = balancer.connect()
            servers.append(ask(fresh)[0])
            fresh.close()
        assert Counter(servers) == {"vllm-0": 10, "vllm-1": 10}
        assert all(a != b for a, b in itertools.pairwise(servers))


@pytest.mark.parametrize(
    ("kind", "policy"),
    [each for each in WITH_CONFIGURATION if POLICIES[each[0]][each[1]] == "user"],
)
def test_users_stay_on_one_server(tmp_path: Path, kind: str, policy: str) -> None:
    """With a policy of users all requests of a user go to one server, and not all users to the same one."""
    with running(kind, policy, tmp_path) as balancer:
        connection = balancer.connect()
        asked = {user: {ask(connection, str(user))[0] for _ in range(3)} for user in range(100_001, 100_025)}
        assert all(len(servers) == 1 for servers in asked.values())
        assert set.union(*asked.values()) == {"vllm-0", "vllm-1"}


@pytest.mark.parametrize(
    ("kind", "policy"),
    [each for each in WITH_CONFIGURATION if POLICIES[each[0]][each[1]] in {"load", "random"}],
)
def test_no_server_stays_idle(tmp_path: Path, kind: str, policy: str) -> None:
    """With a policy of load or of chance both servers answer."""
    with running(kind, policy, tmp_path) as balancer:
        connection = balancer.connect()
        assert {ask(connection)[0] for _ in range(40)} == {"vllm-0", "vllm-1"}


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_a_dead_server_is_seen(tmp_path: Path, kind: str) -> None:
    """A request to a dead server fails as such and is sent to no other; HAProxy's health then says so."""
    with running(kind, "", tmp_path) as balancer:
        dead = balancer.servers["vllm-1"]
        _end(dead)
        # A connection each: nginx closes one on which it has refused a request whose body was still to come.
        asked = Counter(ask(balancer.connect())[0] for _ in range(4))
        failed = "HTTP 503" if kind == "haproxy" else "HTTP 502"
        assert asked == {"vllm-0": 2, failed: 2}
        if kind == "haproxy":
            deadline = time.monotonic() + 20
            while _is_ready(f"{balancer.url}/health"):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            counters = requests.get(balancer.metrics_url, timeout=5).text
            assert 'haproxy_server_status{proxy="servers",server="vllm-1",state="DOWN"} 1' in counters


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_prompts_of_megabytes_pass_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    """A long prompt is passed on without a file; at the end no process is left, and nothing beyond the run's folder."""
    with running(kind, "", tmp_path) as balancer:
        body = {"messages": [{"role": "user", "content": "w " * (4 << 20)}], "max_tokens": 1, "stream": True}
        answer = requests.post(f"{balancer.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200
        assert f'"prompt_tokens": {(4 << 20) + 5}' in answer.text
        written = [
            path for path in balancer.folder.rglob("*") if path.is_file() and path.suffix not in {".cfg", ".conf"}
        ]
        assert [path.name for path in written] == (["nginx.pid"] if kind == "nginx" else [])
        counters = requests.get(balancer.metrics_url, timeout=5)
        assert counters.status_code == 200
        assert balancer.log.read_text().count("emerg") == 0
        children = psutil.Process(balancer.process.pid).children(recursive=True)
    assert [each for each in children if each.is_running()] == []
    assert balancer.process.returncode is not None


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_a_whole_load_through_it_is_valid(tmp_path: Path, kind: str) -> None:
    """A load of many requests side by side is valid, in even turns, and its times are the servers' and not bursts'."""
    with running(kind, "", tmp_path, "--stub-itl", "0.02") as balancer:
        workload = MultiRoundQa(
            users=5, rounds=20, qps=20, shared_prompt_tokens=10, context_tokens=(50,), answer_tokens=10,
            duration_s=3, warmup_requests=2, send_late_budget_s=5, shared_reads_budget=1,
        )  # fmt: skip
        plan = LoadPlan(
            base_url=f"{balancer.url}/v1", model="stub", workload=workload, context_tokens=50,
            tokenizer_url=balancer.servers["vllm-0"], rows=tmp_path / "rows.parquet", summary=tmp_path / "load.json",
        )  # fmt: skip
        outcome = worker.carry_out(plan, lambda _: None)
        rows = read(plan.rows)
        assert validity.faults(rows, workload, outcome.facts()) == []
        assert not [line for line in validity.suspicions(rows, workload) if "arrive in one piece" in line]
        found = check_routing(rows, Routing(f"{kind} turns", "turns", tuple(balancer.servers)))
        assert found.faults == ()
        assert max(found.requests.values()) - min(found.requests.values()) <= 1


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_its_own_latency_is_measured(tmp_path: Path, kind: str) -> None:
    """The balancer's own time is that of pairs of requests to both servers, and far below the servers' own."""
    with running(kind, "", tmp_path) as balancer:
        found = balancer_latency.measure(f"{balancer.url}/v1", balancer.servers, model="stub", extra_body={})
    assert found.servers == {"vllm-0": balancer_latency.PAIRS_PER_SERVER, "vllm-1": balancer_latency.PAIRS_PER_SERVER}
    assert found.low_s <= found.median_s <= found.high_s
    assert found.direct_s > 0.005


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
@pytest.mark.parametrize("beyond", [True, False])
def test_other_machines_are_served_prompts_alone(
    tmp_path: Path, kind: str, beyond: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it listens beyond its machine nothing but prompts is passed on, however a path is written."""
    monkeypatch.setattr(Front, "beyond", beyond)
    others = ("/reset_prefix_cache", "/tokenize", "/metrics", "//tokenize", "/v1/../tokenize", "/%74okenize", "/v1")
    with running(kind, "", tmp_path) as balancer:
        name, _ = ask(balancer.connect())
        assert name in balancer.servers
        found = {}
        for path in others:
            connection = balancer.connect()
            connection.request("POST", path, b"{}")
            found[path] = connection.getresponse().status
        assert all((status == 403) == beyond for status in found.values()), found
        assert _is_ready(f"{balancer.url}/health")


def test_a_template_of_ones_own_runs(tmp_path: Path) -> None:
    """HAProxy runs with a user's template, whatever it has in it."""
    own = tmp_path / "own.cfg"
    own.write_text(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n"
        "listen all\n  bind {{ host }}:{{ port }}\n  monitor-uri /health\n  balance roundrobin\n"
        "{% for s in servers %}\n  server {{ s.name }} {{ s.address }}\n{% endfor %}\n"
    )
    with running("haproxy", "", tmp_path, template=own) as balancer:
        connection = balancer.connect()
        assert Counter(ask(connection)[0] for _ in range(4)) == {"vllm-0": 2, "vllm-1": 2}

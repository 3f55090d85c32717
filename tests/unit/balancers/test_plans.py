"""What each kind starts: commands and files, as text; the programs themselves are in test_real_programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_kvcache.campaign.comparability import comparability
from pytest_kvcache.config.balancer import POLICIES
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.balancers import kinds, templates
from pytest_kvcache.serving.render import render
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.verdict.comparability import differences
from tests.unit.balancers.make import EVERY, SERVERS, WITH_CONFIGURATION, front, settings

ROUTER = list(POLICIES["vllm-router"])


@pytest.mark.parametrize(("kind", "policy"), EVERY)
def test_where_requests_go(tmp_path: Path, kind: str, policy: str) -> None:
    """One URL where something balances, that of each server where nothing does; a process only where one is ours."""
    found = kinds.plan(settings(kind, policy), front(tmp_path))
    if kind == "none":
        assert found.base_urls == tuple(f"{url}/v1" for url in SERVERS.values())
    else:
        assert found.base_urls == ("http://lb:8000/v1" if kind == "url" else "http://127.0.0.1:9000/v1",)
    assert (found.component is None) == (kind in {"url", "none"})
    if found.component is not None:
        assert found.component.stage == "balancer"
        assert found.component.ready_url == "http://127.0.0.1:9000/health"
        assert found.metrics_url.startswith("http://127.0.0.1:9001/")


@pytest.mark.parametrize("policy", ROUTER)
def test_the_router_gets_policy_and_arguments(tmp_path: Path, policy: str) -> None:
    """The policy, every server and the profile's own arguments are on the command line, and retries are off."""
    component = kinds.plan(
        settings("vllm-router", policy, args=("--request-timeout-secs", "9")), front(tmp_path)
    ).component
    assert component is not None
    argv = list(component.argv)
    assert argv[0] == "vllm-router"
    assert argv[argv.index("--policy") + 1] == policy
    assert argv[argv.index("--worker-urls") + 1 :][:2] == list(SERVERS.values())
    assert {"--disable-retries", "--disable-circuit-breaker"} <= set(argv)
    assert argv[-2:] == ["--request-timeout-secs", "9"]


def test_kv_aware_is_told_of_blocks_on_this_machine(tmp_path: Path) -> None:
    """Each server publishes on a socket, the router listens to a port of loopback, and a program joins the two."""
    chosen = settings("vllm-router", "kv_aware")
    profile = catalogue.load(None).profile("cpu-tiny").model_copy(update={"balancer": chosen})
    (tier,) = catalogue.load(None).select(["gpu"])
    data = json.loads(render(profile, tier, None, {}, as_json=True))
    by_name = {each["name"]: each["argv"] for each in data["components"]}
    router = by_name["router"]
    sources = [router[i + 1] for i, word in enumerate(router) if word == "--kv-event-source"]
    assert len(sources) == 2
    for index, source in enumerate(sources):
        server, relay = by_name[f"vllm-{index}"], by_name[f"events-{index}"]
        told = json.loads(server[server.index("--kv-events-config") + 1])["endpoint"]
        door, socket = (relay[relay.index(word) + 1] for word in ("--listen", "--connect"))
        url = f"http://127.0.0.1:{server[server.index('--port') + 1]}"
        assert source == f"{url}=tcp://{door}"
        assert door.startswith("127.0.0.1:")
        assert told == f"ipc://{socket}"
    assert router[router.index("--kv-event-block-size") + 1] == "128"
    assert list(by_name) == ["vllm-0", "vllm-1", "events-0", "events-1", "router"]


@pytest.mark.parametrize(("kind", "policy"), [each for each in EVERY if each[1] != "kv_aware"])
def test_servers_need_to_know_nothing_of_other_balancers(tmp_path: Path, kind: str, policy: str) -> None:
    """Only kv_aware changes the servers' commands: with any other balancer they are the same."""
    assert kinds.server_args(settings(kind, policy), tmp_path, 0) == ()
    assert kinds.plan(settings(kind, policy), front(tmp_path)).events == ()


@pytest.mark.parametrize(("kind", "policy"), WITH_CONFIGURATION)
def test_configurations_have_servers_policy_and_no_retries(tmp_path: Path, kind: str, policy: str) -> None:
    """The file has all servers and the policy; requests are sent once, streams are not held back, no daemon is left."""
    component = kinds.plan(settings(kind, policy), front(tmp_path)).component
    assert component is not None
    ((path, text),) = component.files.items()
    assert path.parent == tmp_path
    assert str(path) in component.argv
    lines = [line.strip() for line in text.splitlines()]
    if kind == "haproxy":
        assert f"balance {policy}" in lines
        assert [line for line in lines if line.startswith("server ")] == [
            "server vllm-0 127.0.0.1:8001",
            "server vllm-1 127.0.0.1:8002",
        ]
        assert {"retries 0", "option http-no-delay", "monitor-uri /health", "bind 127.0.0.1:9000"} <= set(lines)
        assert "-db" in component.argv
    else:
        assert (f"{policy};" in lines) == (policy != "round_robin")
        assert [line for line in lines if line.startswith("server 1")] == [
            "server 127.0.0.1:8001 max_fails=0;",
            "server 127.0.0.1:8002 max_fails=0;",
        ]
        wanted = {"daemon off;", "proxy_buffering off;", "proxy_request_buffering off;", "proxy_next_upstream off;"}
        assert wanted <= set(lines)
        assert component.folders == (tmp_path / "nginx",)
        files = [line for line in lines if "_path" in line or line.startswith("pid ")]
        assert len(files) == 6
        assert all(f"{tmp_path}/nginx/" in line for line in files)


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_any_number_of_servers_and_an_address_of_ipv6(tmp_path: Path, kind: str, count: int) -> None:
    """Every server is in the file, and an address of IPv6 stands in brackets."""
    servers = {f"vllm-{i}": f"http://[fd00::{i + 1}]:8000" for i in range(count)}
    found = kinds.plan(settings(kind), front(tmp_path, servers, host="fd00::9"))
    assert found.component is not None
    (text,) = found.component.files.values()
    assert all(f"[fd00::{i + 1}]:8000" in text for i in range(count))
    assert "[fd00::9]:9000" in text
    assert found.base_urls == ("http://[fd00::9]:9000/v1",)


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_a_template_of_ones_own_takes_the_place(tmp_path: Path, kind: str) -> None:
    """A user's template gets the same names as ours, and its content is a key of comparison."""
    own = tmp_path / "own.j2"
    own.write_text(
        "{{ host }} {{ port }} {{ metrics_port }} {{ policy }} {{ max_inflight }} {{ folder }}\n"
        "{% for each in servers %}\n{{ each.name }}={{ each.address }}\n{% endfor %}\n"
    )
    chosen = settings(kind, template=str(own))
    component = kinds.plan(chosen, front(tmp_path)).component
    assert component is not None
    (text,) = component.files.values()
    first = next(iter(POLICIES[chosen.kind]))
    assert text == (
        f"127.0.0.1 9000 9001 {first} 8192 {tmp_path}/{kind}\nvllm-0=127.0.0.1:8001\nvllm-1=127.0.0.1:8002\n"
    )
    before = templates.digest(chosen)
    own.write_text("another")
    assert templates.digest(chosen) != before != ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{% for x in servers %}", "own.j2: line 1: Unexpected end of template"),
        (b"a\n{{ workers }}", "'workers' is undefined; a template may name host, port, metrics_port, servers, policy"),
        (b"{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        (b"{{ port.x.y }}", "'int object' has no attribute 'x'"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_template_that_cannot_be_filled_in_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    """What is wrong with a template is told with its file, in place of a balancer that does not start."""
    own = tmp_path / "own.j2"
    if content is not None:
        own.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        kinds.plan(settings("nginx", template=str(own)), front(tmp_path))
    assert said in str(raised.value)


@pytest.mark.parametrize(("kind", "policy"), EVERY)
def test_rendering_shows_files_and_commands(kind: str, policy: str) -> None:
    """`render` prints the balancer's command, its configuration, and where requests go; as JSON too."""
    chosen = settings(kind, policy)
    profile = catalogue.load(None).profile("cpu-tiny").model_copy(update={"balancer": chosen})
    (tier,) = catalogue.load(None).select(["gpu"])
    script = render(profile, tier, None, {}, as_json=False)
    data = json.loads(render(profile, tier, None, {}, as_json=True))
    names = [each["name"] for each in data["components"]]
    assert data["balancer"]["kind"] == kind
    assert data["balancer"]["promises"] == chosen.promises
    ours = {"vllm-router": "router", "haproxy": "haproxy", "nginx": "nginx"}.get(kind)
    relays = ["events-0", "events-1"] if policy == "kv_aware" else []
    assert names == ["vllm-0", "vllm-1", *relays, *([ours] if ours else [])]
    if kind == "none":
        assert len(data["turn_urls"]) == 2
        assert "No balancer: the client takes turns over http://127.0.0.1:" in script
    else:
        assert data["turn_urls"] == []
        assert f"Requests go to {data['base_url']} ({chosen.label}" in script
    if kind in {"haproxy", "nginx"}:
        assert f"cat > /tmp/kvc-RUN/{'haproxy.cfg' if kind == 'haproxy' else 'nginx.conf'} <<'EOF'" in script
    assert ("--kv-events-config" in script) == (policy == "kv_aware")


def test_ports_of_servers_are_those_that_a_balancer_knows() -> None:
    """With `server_ports` each server listens where the balancer looks for it."""
    chosen = settings("url", server_ports=(18001, 18002))
    profile = catalogue.load(None).profile("cpu-tiny").model_copy(update={"balancer": chosen})
    (tier,) = catalogue.load(None).select(["gpu"])
    data = json.loads(render(profile, tier, None, {}, as_json=True))
    argvs = [each["argv"] for each in data["components"]]
    assert [argv[argv.index("--port") + 1] for argv in argvs] == ["18001", "18002"]


def test_the_balancer_is_a_key_of_comparison() -> None:
    """Kind, policy and version must be equal; a result from before there was a choice had the only balancer."""
    profile = catalogue.load(None).profile("cpu-tiny")

    def keys(**balancer: str) -> dict[str, str]:
        return comparability(
            profile, context_tokens=1, model_id="m", hardware={}, storage={}, launcher="process", balancer=balancer
        )

    router = keys(balancer="vllm-router round_robin", balancer_version="0.1.17")
    assert differences(router, keys(balancer="haproxy leastconn", balancer_version="2.6.12")) == [
        "serving.balancer: vllm-router round_robin -> haproxy leastconn",
        "serving.balancer_version: 0.1.17 -> 2.6.12",
    ]
    assert differences(router, {**router, "serving.balancer_version": "0.1.18"}) == [
        "serving.balancer_version: 0.1.17 -> 0.1.18"
    ]
    assert differences(keys(), router) == []
    assert differences(keys(), keys(balancer="none turns", balancer_version="")) == [
        "serving.balancer: vllm-router round_robin -> none turns"
    ]
    assert differences(keys(), keys()) == []

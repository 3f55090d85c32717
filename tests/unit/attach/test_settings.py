"""`[attach.TIER]`: what may be said of a deployment, and how what may not is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_kvcache.config.attach import Attach
from pytest_kvcache.deployment.pods import Pod
from pytest_kvcache.deployment.standing import find
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.tiers import catalogue

BASE = 'base_url = "http://router:8000/v1"\n'


def load(tmp_path: Path, table: str) -> Attach:
    """Return what kvcache.toml says of the deployment of tier pnfs."""
    path = tmp_path / "kvcache.toml"
    path.write_text(f"[attach.pnfs]\n{table}", encoding="utf-8")
    return catalogue.load(path).attach["pnfs"]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("", "attach.pnfs.base_url: Field required"),
        ('base_url = "router:8000/v1"', "must begin with http:// or https://"),
        ('base_url = "http://router:8000"', "must end in /v1"),
        ('base_url = "http://router:port/v1"', "is no URL"),
        ('base_url = "http://me:secret@router/v1"', "has a user or password in it"),
        (BASE + "base_ulr = 1", "base_ulr: unknown key; allowed: api_key_env, base_url, deployment"),
        (BASE + 'tier = "cpu"', "attach.pnfs.tier: unknown key; the table's own name is the tier"),
        (BASE + 'api_key_env = "sk-abc"', "is no name of an environment variable; the key itself belongs in no file"),
        (BASE + "other_traffic = 1.0", "other_traffic: Input should be less than 1"),
        (BASE + "other_traffic = true", "must be a number, not true"),
        (BASE + '[attach.pnfs.servers]\na = "http://a:1"', "'a' is no name of a server: vllm-0, vllm-1"),
        (BASE + '[attach.pnfs.servers]\nvllm-0 = "http://a:1/v1"', "vllm-0 has /v1 at its end: leave it out"),
        (
            BASE + '[attach.pnfs.servers]\nvllm-0 = "http://a:1"\nvllm-1 = "http://a:1/"',
            "vllm-0 and vllm-1 are one address",
        ),
        (BASE + '[attach.pnfs.metrics]\nlmcache-0 = "http://a:1/metrics"', "no server has that number; servers: none"),
        (
            BASE + '[attach.pnfs.servers]\nvllm-0 = "http://a:1"\n[attach.pnfs.metrics]\nlmcache-0 = "http://a:2"',
            "lmcache-0 has no path: that of Prometheus is mostly /metrics",
        ),
        (
            BASE + '[attach.pnfs.servers]\nvllm-0 = "http://a:1"\n[attach.pnfs.kubernetes]\nselector = "x=y"',
            "servers: Kubernetes finds them; give one of the two",
        ),
        (BASE + '[attach.pnfs.kubernetes]\nselector = ""', "kubernetes.selector: String should have at least 1"),
        (BASE + '[attach.pnfs.kubernetes]\nselector = "a=b"\nport = 70000', "70000 is no port"),
        (BASE + '[attach.pnfs.kubernetes]\nselector = "a=b"\nport = "HTTP!"', "is no number and no name of a port"),
        (BASE + '[attach.pnfs.kubernetes]\nselector = "a=b"\nnamespace = "A"', "is no name of a namespace"),
    ],
)
def test_what_is_refused(tmp_path: Path, table: str, expected: str) -> None:
    """A wrong key of a deployment is named with its table, before anything is sent, and no secret is repeated."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, table)
    assert expected in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "sk-abc" not in str(caught.value)


def test_a_table_names_a_tier(tmp_path: Path) -> None:
    """A deployment serves one of the known tiers."""
    path = tmp_path / "kvcache.toml"
    path.write_text(f"[attach.cluster]\n{BASE}")
    with pytest.raises(ConfigError, match=r"attach\.cluster: is no tier; known: gpu, cpu, s3, pnfs"):
        catalogue.load(path)


@pytest.mark.parametrize(
    ("inside", "metrics", "expected"),
    [
        (False, "", {"vllm-0": "http://a:1/metrics"}),
        (True, "", {"vllm-0": "http://a:1/metrics", "lmcache-0": "http://a:1/metrics"}),
        (
            True,
            '[attach.pnfs.metrics]\nlmcache-0 = "http://a:7000/metrics"\n"lmcache-0.1" = "http://a:7001/metrics"',
            {
                "vllm-0": "http://a:1/metrics",
                "lmcache-0": "http://a:7000/metrics",
                "lmcache-0.1": "http://a:7001/metrics",
            },
        ),
    ],
)
def test_where_counters_are_read(tmp_path: Path, inside: bool, metrics: str, expected: dict[str, str]) -> None:
    """An LMCache inside vLLM is read where vLLM is, unless an endpoint of its own is named."""
    attach = load(tmp_path, f'{BASE}[attach.pnfs.servers]\nvllm-0 = "http://a:1"\n{metrics}')
    assert find(attach, lmcache_inside=inside).metrics_urls == expected


def test_what_is_compared_and_what_is_recorded(tmp_path: Path) -> None:
    """The name of a deployment and what was said of it are keys; the URLs and versions are not."""
    attach = load(
        tmp_path,
        'base_url = "http://router:8000/v1"\ndeployment = "rack-7"\nfacts = { gpus = "2x H100" }\n'
        '[attach.pnfs.servers]\nvllm-0 = "http://a:1"',
    )
    standing = find(attach, lmcache_inside=False, authorization="Bearer sk-hidden")
    assert standing.known() == {"deployment": "rack-7", "servers": "1", "gpus": "2x H100"}
    assert standing.facts()["server.vllm-0"] == "http://a:1"
    assert "sk-hidden" not in repr(standing)


def test_a_pods_port_by_its_name() -> None:
    """Ports may be named as containers name them."""
    pod = Pod("p", "1", "10.0.0.1", "n", (), 0, {"http": 8080})
    assert pod.port("http") == 8080
    assert pod.port(8000) == 8000

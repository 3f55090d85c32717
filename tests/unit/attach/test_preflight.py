"""Checks of a deployment before the load is sent, on stub servers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from pytest_kvcache import preflight
from pytest_kvcache.check import CheckResult
from pytest_kvcache.cli import main
from pytest_kvcache.config.attach import Attach
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.deployment.standing import find
from pytest_kvcache.preflight import deployment
from pytest_kvcache.tiers import catalogue
from tests.stubs.engine import toml
from tests.stubs.server import StubPair, stub_pair

GONE = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StubPair]:
    """A pair that stands."""
    with stub_pair(tmp_path_factory.mktemp("pair")) as standing:
        yield standing


def profile(**more: object) -> Profile:
    """Return the stubs' profile."""
    return catalogue.parse(toml().encode(), source=None, where="x").profiles["stub"].model_copy(update=more)


def checked(attach: Attach, *, offloads: bool = False, model: str = "stub") -> dict[str, CheckResult]:
    """Return the results of all checks by name."""
    standing = find(attach, lmcache_inside=False)
    checks = deployment.checks(standing, profile(model=model), offloads=offloads)
    return {check.name: preflight.run("tier gpu", check) for check in checks}


def described(pair: StubPair, **more: object) -> Attach:
    """Return the description of a pair."""
    return Attach.model_validate({"tier": "gpu", "base_url": pair.router, "servers": pair.servers, **more})


def test_a_sound_deployment(pair: StubPair) -> None:
    """Every check of a quiet deployment passes but for what its answers do not tell."""
    found = checked(described(pair))
    told = {name: result.finding.status for name, result in found.items()}
    assert told == {
        "router": "pass", "servers": "pass", "counters": "pass", "usage": "warn", "tokenizer": "pass",
        "other traffic": "pass",
    }  # fmt: skip
    assert found["servers"].finding.found == "2 servers, vLLM 0.stub"
    assert "their server's own times" in found["usage"].finding.found
    assert "which server answered" not in found["usage"].finding.found


@pytest.mark.parametrize(
    ("more", "model", "check", "expected"),
    [
        ({"base_url": f"{GONE}/v1"}, "stub", "router", "Connection refused"),
        ({}, "other", "router", "does not serve other; it serves stub"),
        ({"servers": {"vllm-0": GONE}}, "stub", "servers", f"vllm-0 ({GONE})"),
        ({"servers": {"vllm-0": GONE}}, "stub", "counters", f"vllm-0: {GONE}/metrics has no Prometheus text"),
    ],
)
def test_what_fails(pair: StubPair, more: dict[str, object], model: str, check: str, expected: str) -> None:
    """What is wrong is named with its address."""
    finding = checked(described(pair, **more), model=model)[check].finding
    assert finding.status == "fail"
    assert expected in finding.found


def test_counters_of_another_program(pair: StubPair) -> None:
    """An endpoint that has other counters than vLLM's was named by mistake."""
    named = {"vllm-0": f"{pair.router.removesuffix('/v1')}/metrics"}
    finding = checked(described(pair, servers={"vllm-0": pair.servers["vllm-0"]}, metrics=named))["counters"].finding
    assert finding.status == "pass"  # the stub's router counts like a server of prompts
    finding = checked(described(pair), offloads=True)["counters"].finding
    assert finding.status == "fail"
    assert "no counters of an LMCache are read" in finding.found


def test_a_router_alone_says_what_is_lost(pair: StubPair) -> None:
    """Without servers it warns of what cannot be known."""
    found = checked(described(pair, servers={}))
    assert found["servers"].finding.status == "warn"
    assert found["counters"].finding.status == "warn"
    assert found["tokenizer"].finding.status == "pass"


def test_doctor_checks_a_deployment(pair: StubPair, capsys: pytest.CaptureFixture[str]) -> None:
    """`doctor --kv-launcher attach` looks at the deployment and at nothing here, and fails where a check fails."""
    argv = ["doctor", "--kv-launcher", "attach", "--tier", "gpu", "--kv-profile", "cpu-tiny"]
    urls = [f"--kv-server-url={url}" for url in pair.servers.values()]
    assert main([*argv, f"--kv-base-url={pair.router}", *urls]) == 1
    text = capsys.readouterr().out
    assert "does not serve tiny-qwen3; it serves stub" in text
    assert "machine" not in text


def test_others_are_seen_while_nothing_is_sent(pair: StubPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of others in the time of the check are a warning with their rate."""
    url = f"{pair.servers['vllm-0']}/v1/chat/completions"
    body = '{"messages":[{"role":"user","content":"a b c"}],"max_tokens":1,"model":"stub"}'
    monkeypatch.setattr(
        "pytest_kvcache.preflight.deployment.time.sleep",
        lambda _: subprocess.run(["curl", "-s", "-o", "/dev/null", "-d", body, url], check=True),
    )
    finding = checked(described(pair))["other traffic"].finding
    assert finding.status == "warn"
    assert "others use it: prompt tokens a second: vllm-0 4, vllm-1 0" in finding.found

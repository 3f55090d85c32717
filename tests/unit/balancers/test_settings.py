"""`[profiles.NAME.balancer]`: what is allowed, what follows by itself, and what is refused with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pytest_kvcache.config.balancer import MEANINGS, POLICIES, Balancer
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.tiers import catalogue
from tests.unit.balancers.make import EVERY, settings


def profile(text: str) -> Balancer:
    """Return the balancer of the profile `mine` in a kvcache.toml."""
    content = f'[profiles.mine]\nextends = "cpu-tiny"\n{text}'.encode()
    return catalogue.parse(content, source=None, where="kvcache.toml").profile("mine").balancer


def test_the_default_is_the_router_with_turns() -> None:
    """A profile that says nothing has vllm-router with round robin, as before there was a choice."""
    assert profile("") == Balancer()
    assert (Balancer().kind, Balancer().policy, Balancer().promises) == ("vllm-router", "round_robin", "turns")


@pytest.mark.parametrize(("kind", "policy"), EVERY)
def test_each_known_policy_has_its_promise(kind: str, policy: str) -> None:
    """Every policy of the table is taken as it is written, and brings what it promises."""
    found = settings(kind, policy)
    assert found.policy == policy
    assert found.promises == POLICIES[found.kind][policy]
    assert MEANINGS[found.promises]


@pytest.mark.parametrize("kind", POLICIES)
def test_the_first_policy_is_the_default(kind: str) -> None:
    """Where no policy is named it is the first of its kind, and servers take turns where the run decides."""
    found = settings(kind)
    assert found.policy == next(iter(POLICIES[found.kind]))
    assert found.promises == ("nothing" if kind == "url" else "turns")


@pytest.mark.parametrize("kind", ["vllm-router", "haproxy", "nginx"])
def test_an_unknown_policy_promises_nothing_by_itself(kind: str) -> None:
    """A policy of a newer program is taken, and promises what the profile says of it, or nothing."""
    assert settings(kind, "brand_new").promises == "nothing"
    assert settings(kind, "brand_new", promises="user").promises == "user"


def test_a_template_of_ones_own_promises_nothing_by_itself(tmp_path: Path) -> None:
    """What a user's own configuration does is not known, whatever policy is named beside it."""
    own = {"template": str(tmp_path / "own.cfg")}
    assert settings("haproxy", "roundrobin", **own).promises == "nothing"
    assert settings("nginx", "", promises="turns", **own).promises == "turns"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('kind = "envoy"', "'envoy' is not allowed; allowed: 'vllm-router', 'haproxy', 'nginx', 'url' or 'none'"),
        ('kind = "haproxy"\nargs = ["-v"]', "args is no key of kind 'haproxy': it has template"),
        ('kind = "vllm-router"\ntemplate = "a.cfg"', "template is no key of kind 'vllm-router': it has args"),
        ('kind = "none"\nurl = "http://h"', "url is no key of kind 'none': it has none of its own"),
        ('kind = "none"\npolicy = "random"', "'random' is not allowed; the client can take turns, and no more"),
        ('kind = "none"\npromises = "user"', "promises: the client takes turns; leave it out"),
        ('kind = "url"', "url: is missing"),
        ('kind = "url"\nurl = "lb:8000"', "url: 'lb:8000' is none; give scheme, host and port"),
        ('kind = "url"\nurl = "http://me:secret@lb:8000"', "url: 'lb:8000' is none; give scheme, host and port"),
        ('kind = "url"\nurl = "http://lb/v1"', "ends with /v1, which is added to it"),
        ('kind = "url"\nurl = "http://lb"\nserver_ports = [8001]', "server_ports: 1 ports for 2 servers"),
        ('kind = "url"\nurl = "http://lb"\nserver_ports = [8001, 8001]', "each server has a port of its own"),
        ('kind = "url"\nurl = "http://lb"\nserver_ports = [0, 8001]', "server_ports.0"),
        ('kind = "haproxy"\npolicy = "source"', "it goes by the client's address"),
        ('kind = "haproxy"\npolicy = "first"', "it fills one server before it uses the next"),
        ('kind = "nginx"\npolicy = "ip_hash"', "take hash $http_x_user_id consistent"),
        ('kind = "nginx"\npolicy = "least_conn; } evil {"', "has a character that no policy has"),
        ('kind = "haproxy"\npolicy = "roundrobin\\n stats"', "roundrobin stats"),
        ('args = ["--policy", "random"]', "args: --policy is not allowed: set policy"),
        ('args = ["--worker-urls=http://x"]', "args: --worker-urls is not allowed: the servers are the pair's"),
        ('args = ["--api-key", "k"]', "the key would be seen in the list of processes"),
        ('args = ["random"]', "args: 'random' belongs to no option"),
        ("policies = 1", "policies: unknown key; allowed: args, kind, policy, promises, server_ports, template, url"),
        ('policy = "random"\npromises = "luck"', "'luck' is not allowed; allowed: 'turns', 'random'"),
    ],
)
def test_what_is_refused_says_why(text: str, said: str) -> None:
    """A wrong key or value is told before anything boots, with the place in the file and what to do."""
    if said == "roundrobin stats":  # a line end becomes a space, and HAProxy itself refuses the words
        assert profile(f"[profiles.mine.balancer]\n{text}").policy == said
        return
    with pytest.raises(ConfigError) as raised:
        profile(f"[profiles.mine.balancer]\n{text}")
    assert said in str(raised.value)
    assert "kvcache.toml: profiles.mine" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_another_kind_begins_anew() -> None:
    """A profile that extends one with another kind of balancer takes none of its keys over."""
    content = """
[profiles.first]
extends = "cpu-tiny"
[profiles.first.balancer]
policy = "cache_aware"
args = ["--cache-threshold", "0.5"]
[profiles.second]
extends = "first"
balancer.kind = "nginx"
[profiles.third]
extends = "first"
balancer.policy = "random"
"""
    found = catalogue.parse(content.encode(), source=None, where="kvcache.toml")
    assert found.profile("second").balancer == settings("nginx")
    assert found.profile("third").balancer == settings("vllm-router", "random", args=("--cache-threshold", "0.5"))


def test_a_template_is_relative_to_the_file(tmp_path: Path) -> None:
    """The path of a template begins in the folder of kvcache.toml."""
    content = b'[profiles.cpu-tiny.balancer]\nkind = "haproxy"\ntemplate = "lb/own.cfg"'
    known = catalogue.parse(content, source=tmp_path / "kvcache.toml", where="kvcache.toml")
    assert known.profile("cpu-tiny").balancer.template == tmp_path / "lb" / "own.cfg"


def test_what_is_no_table_is_refused() -> None:
    """A balancer that is no table is refused as such."""
    with pytest.raises(ValidationError):
        Balancer.model_validate("haproxy")

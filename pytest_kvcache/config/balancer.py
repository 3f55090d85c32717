"""The load balancer of a pair as validated data: its kind, its policy, and what that policy promises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pytest_kvcache.config.vllm_args import is_option, options
from pytest_kvcache.strict import Strict, UserPath

Kind = Literal["vllm-router", "haproxy", "nginx", "url", "none"]
Promise = Literal["turns", "random", "load", "user", "prefix", "nothing"]

#: What each promise means for the requests of a run, in words for people.
MEANINGS: Mapping[Promise, str] = {
    "turns": "servers take turns, so that all get as many requests",
    "random": "each request goes to any server, and all are as likely",
    "load": "a request goes to a server that has little to do",
    "user": "all requests of a user go to one server",
    "prefix": "a prompt goes to a server that has seen its beginning",
    "nothing": "it is not known where requests go",
}
#: Policies by kind, each with its promise; the first is the default. A policy that is not listed promises nothing:
#: whether the program knows it, its own parser says before a boot.
POLICIES: Mapping[Kind, Mapping[str, Promise]] = {
    "vllm-router": {
        "round_robin": "turns",
        "random": "random",
        "power_of_two": "load",
        "consistent_hash": "user",
        "rendezvous_hash": "user",
        "sticky_least_loaded": "user",
        "cache_aware": "prefix",
        "kv_aware": "prefix",
    },
    # `random` draws two servers and takes the one with fewer connections (HAProxy's manual, `balance`).
    "haproxy": {
        "roundrobin": "turns",
        "static-rr": "turns",
        "leastconn": "load",
        "random": "load",
        "random(2)": "load",
        "random(1)": "random",
        "hdr(x-user-id)": "user",
    },
    "nginx": {
        "round_robin": "turns",
        "least_conn": "load",
        "random": "random",
        "random two": "load",
        "random two least_conn": "load",
        "hash $http_x_user_id": "user",
        "hash $http_x_user_id consistent": "user",
    },
    "url": {"": "nothing"},
    "none": {"turns": "turns"},
}
_ONE_SERVER = "every request of a run has the same, so that one server would get all; for a server for each user take"
#: Policies that would leave all servers but one idle.
_USELESS: Mapping[tuple[str, str], str] = {
    ("haproxy", "source"): f"it goes by the client's address: {_ONE_SERVER} hdr(x-user-id)",
    ("haproxy", "uri"): f"it goes by the path: {_ONE_SERVER} hdr(x-user-id)",
    ("haproxy", "first"): "it fills one server before it uses the next: take leastconn",
    ("nginx", "ip_hash"): f"it goes by the client's address: {_ONE_SERVER} hash $http_x_user_id consistent",
}
#: Keys of each kind beside `kind`, `policy` and `promises`.
_KEYS: Mapping[str, frozenset[str]] = {
    "vllm-router": frozenset({"args"}),
    "haproxy": frozenset({"template"}),
    "nginx": frozenset({"template"}),
    "url": frozenset({"url", "server_ports"}),
    "none": frozenset(),
}
_OWN_KEYS = frozenset().union(*_KEYS.values())
#: What a policy may be written with: nothing that would end a directive of HAProxy or nginx.
_POLICY = re.compile(r"[\w$(),.%:/ -]*", re.ASCII)
#: Arguments of vllm-router that a run sets itself, or that would have it do something else than balance a pair.
_TAKEN = {
    "--host": "a run chooses the address",
    "--port": "a run chooses the port",
    "--worker-urls": "the servers are the pair's",
    "--policy": "set policy",
    "--prometheus-host": "a run chooses the address",
    "--prometheus-port": "a run chooses the port",
    "--disable-retries": "it is set already: a failed request must show as failed",
    "--disable-circuit-breaker": "it is set already: a failed request must show as failed",
    "--api-key": "the key would be seen in the list of processes",
    "--vllm-pd-disaggregation": "the servers of a pair do both, prefill and decode",
    "--mini-lb": "it is for tests of the router",
    "--service-discovery": "the servers are the pair's",
    "--help": "it would not start",
}
_Port = Annotated[int, Field(ge=1, le=65535)]


class Balancer(Strict):
    """The load balancer in front of the servers; docs/balancers.md."""

    kind: Kind = Field(
        default="vllm-router",
        description="`url` is a balancer that runs already, with `none` the client itself takes turns over the servers",
    )
    policy: str = Field(default="", description="as the program calls it; by default servers take turns")
    promises: Promise = Field(
        default="nothing",
        description="what a run is held against; by default what is known of the policy",
    )
    args: tuple[str, ...] = Field(default=(), description="more arguments of vllm-router")
    template: UserPath | None = Field(
        default=None, description="a configuration of your own for haproxy or nginx, as a Jinja template"
    )
    url: str = Field(default="", description="of the balancer that runs already, as http://host:8000, without /v1")
    server_ports: tuple[_Port, ...] = Field(
        default=(), description="of the servers behind `url`: it must know them before they are booted"
    )

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kind = data.get("kind", "vllm-router")
        if not isinstance(kind, str) or kind not in POLICIES:
            return data  # the field itself says what is allowed
        allowed = _KEYS[kind]
        for key in sorted(data.keys() & _OWN_KEYS - allowed):
            more = f"it has {', '.join(sorted(allowed))}" if allowed else "it has none of its own"
            raise ValueError(f"{key} is no key of kind {kind!r}: {more}")
        known = POLICIES[kind]  # type: ignore[index]  # one of the kinds, as seen above
        policy = data.get("policy", "")
        if not isinstance(policy, str):
            return data
        policy = " ".join(policy.split()) or next(iter(known))
        by_default = "nothing" if data.get("template") else known.get(policy, "nothing")
        return {**data, "policy": policy, "promises": data.get("promises", by_default)}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not _POLICY.fullmatch(self.policy):
            raise ValueError(f"policy: {self.policy!r:.80} has a character that no policy has")
        if why := _USELESS.get((self.kind, self.policy)):
            raise ValueError(f"policy: {self.policy!r} is not allowed: {why}")
        if self.kind == "none" and self.policy != "turns":
            raise ValueError(f"policy: {self.policy!r:.80} is not allowed; the client can take turns, and no more")
        if self.kind == "none" and self.promises != "turns":
            raise ValueError("promises: the client takes turns; leave it out")
        if self.kind == "url":
            self._check_url()
        if self.args and not is_option(self.args[0]):
            raise ValueError(f"args: {self.args[0]!r:.80} belongs to no option")
        for option in options(self.args):
            if why := next((why for name, why in _TAKEN.items() if option.means(name)), ""):
                raise ValueError(f"args: {option.written} is not allowed: {why}")
        return self

    def _check_url(self) -> None:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", self.url):
            what = "is missing" if not self.url else f"{self.url.rpartition('@')[2]!r:.80} is none"
            raise ValueError(f"url: {what}; give scheme, host and port without user, password or query: http://host:80")
        if self.url.rstrip("/").endswith("/v1"):
            raise ValueError(f"url: {self.url!r:.80} ends with /v1, which is added to it: leave it out")
        if len(set(self.server_ports)) != len(self.server_ports):
            raise ValueError("server_ports: each server has a port of its own")

    @property
    def label(self) -> str:
        """Kind and policy, for outputs and comparisons."""
        return f"{self.kind} {self.policy}".strip()

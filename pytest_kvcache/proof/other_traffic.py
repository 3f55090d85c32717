"""Whose traffic the counters have: what servers counted in a run's time, held against what the run's own answers say.

A deployment that stands may have other clients. vLLM counts a prompt when its first token is there, and the run's
own answers say how long their prompts were: what was counted beyond that was somebody else's. Counters that grew less
than the run's own answers mean the opposite: a server answered whose counters are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from pytest_kvcache.proof.balance import ClientTokens, client_tokens
from pytest_kvcache.telemetry.counters import Counters, growth, has, total

_OK = "ok"
_ROUNDING = 0.5
_PROMPTS, _GENERATED = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
_REQUESTS = "vllm:request_success_total"
_LOOKED_UP = ("lmcache_mp_lookup_requested_tokens_total", "lmcache:num_lookup_tokens_total")
#: A request that waits for blocks may be looked up again: LMCache may be asked for more than the prompts have.
_LOOKED_UP_AGAIN = 1.25


@dataclass(frozen=True)
class OtherTraffic:
    """What others did in a run's time.

    Args:
        share: Share of the prompt tokens that were not the run's, 0 to 1; None where no counter says it.
        lines: Why the run is not comparable, a line each; empty where it had the deployment for itself.
        faults: Why no verdict may rest on the run, a line each.
        unchecked: What could not be told, a line each.
    """

    share: float | None = None
    lines: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def facts(self) -> dict[str, object]:
        """Return the finding for `run.json`."""
        return {"share_of_prompt_tokens": self.share, "lines": list(self.lines)}


@dataclass(frozen=True)
class _Held:
    """A counter against the answers.

    Args:
        counted: Growth of the counter.
        told: What the answers add up to.
        below: How much less may have been counted.
        above: How much more may have been counted.
    """

    counted: float
    told: float
    below: float = 0.0
    above: float = 0.0

    @property
    def others(self) -> float:
        """What was counted beyond all that the run can have caused."""
        return max(0.0, self.counted - self.told - self.above - _ROUNDING) and self.counted - self.told

    @property
    def missing(self) -> float:
        """What the answers have and no counter."""
        return max(0.0, self.told - self.below - self.counted - _ROUNDING) and self.told - self.counted

    @property
    def share(self) -> float:
        """Share of the counter that was not the run's."""
        return self.others / self.counted if self.counted else 0.0


def other_traffic(
    rows: pd.DataFrame,
    before: Mapping[str, Counters],
    after: Mapping[str, Counters],
    *,
    tolerance: float = 0.0,
    beyond_tokens: float = 0.0,
) -> OtherTraffic:
    """Return what others did in the time of a run.

    Args:
        rows: Rows of the run, one for each request (`load.records`); `server` is "" where answers do not name it.
        before: Counters by component, read when the clock was about to start and nothing of the run was under way.
        after: Counters by component, read after the last answer.
        tolerance: Share of the prompt tokens that may be of others.
        beyond_tokens: Prompt tokens of requests that were sent and are not in `rows`.
    """
    servers = {name: grown for name, grown in growth(before, after).items() if name.startswith("vllm")}
    if not any(has(grown, _PROMPTS) for grown in servers.values()):
        return OtherTraffic(unchecked=("whether others used the deployment: no counter of prompt tokens is read",))
    told = client_tokens(rows, beyond_tokens=beyond_tokens)
    prompts = _prompts(servers, told)
    if prompts.missing:
        return OtherTraffic(
            faults=(
                f"the answers have {prompts.told:.0f} prompt tokens and the servers whose counters are read counted "
                f"{prompts.counted:.0f}: a server answered that is not among {', '.join(sorted(servers))}; the "
                "deployment was scaled, or not all of its servers were named",
            )
        )
    found = []
    if prompts.share > tolerance:
        where = _by_server(servers, told)
        found.append(
            f"{prompts.share:.0%} of the prompt tokens in the window were not this run's ({prompts.others:.0f} of "
            f"{prompts.counted:.0f}{where})"
        )
    if not beyond_tokens:  # of requests beyond the rows it is not known what was generated for them
        found += _more(rows, servers, tolerance)
    running = sum(total(own, "vllm:num_requests_running") for name, own in before.items() if name in servers)
    if running and not tolerance:
        found.append(f"{running:.0f} requests that were not this run's were being answered when the clock started")
    found += _lookups(growth(before, after), prompts)
    return OtherTraffic(round(prompts.share, 4), tuple(found))


def _prompts(servers: Mapping[str, Counters], told: Mapping[str, ClientTokens]) -> _Held:
    return _Held(
        counted=sum(total(grown, _PROMPTS) for grown in servers.values()),
        told=sum(each.prompt for each in told.values()),
        below=sum(each.below for each in told.values()),
        above=max((each.above for each in told.values()), default=0.0),
    )


def _by_server(servers: Mapping[str, Counters], told: Mapping[str, ClientTokens]) -> str:
    """Return the same for each server, "" where answers do not name their server."""
    if len(servers) < 2 or not set(told) <= set(servers):
        return ""
    parts = []
    for name, grown in sorted(servers.items()):
        counted, own = total(grown, _PROMPTS), told.get(name, ClientTokens()).prompt
        parts.append(f"{name} {max(0.0, counted - own):.0f} of {counted:.0f}")
    return ": " + ", ".join(parts)


def _more(rows: pd.DataFrame, servers: Mapping[str, Counters], tolerance: float) -> list[str]:
    """Return lines for answers and requests of others, which count where no prompt of theirs began in the window."""
    sent, done = rows[rows["actual_start_s"].notna()], rows[rows["status"] == _OK]
    failed = len(sent) - len(done)
    found = []
    for name, what, told, above in (
        (_GENERATED, "generated tokens", float(done["generated_tokens"].fillna(0).sum()), failed),
        (_REQUESTS, "finished requests", float(len(done)), failed),
    ):
        if not any(has(grown, name) for grown in servers.values()):
            continue
        if above and name == _GENERATED:
            continue  # of answers that broke off it is not known how many tokens were generated
        held = _Held(sum(total(grown, name) for grown in servers.values()), told, above=float(above))
        if held.share > tolerance:
            found.append(
                f"{held.share:.0%} of the {what} were not this run's ({held.others:.0f} of {held.counted:.0f})"
            )
    return found


def _lookups(grown: Mapping[str, Counters], prompts: _Held) -> list[str]:
    asked = sum(total(own, name) for key, own in grown.items() if key.startswith("lmcache") for name in _LOOKED_UP)
    if asked <= prompts.counted * _LOOKED_UP_AGAIN:
        return []
    return [
        f"LMCache was asked for {asked:.0f} tokens, and the prompts of all servers that are known had "
        f"{prompts.counted:.0f}: other engines use it"
    ]


@dataclass(frozen=True)
class Identity:
    """Whether the servers of a run stayed what they were.

    Args:
        faults: What says that they did not, a line each.
        unchecked: What could not be told, a line each.
    """

    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = field(default=())


def identity(
    rows: pd.DataFrame, before: Mapping[str, Counters], after: Mapping[str, Counters], servers: frozenset[str]
) -> Identity:
    """Return whether the servers stayed what they were, by their configuration and by the names in their answers.

    Args:
        rows: Rows of the run, with the names that servers gave themselves, or "".
        before: Counters by component before the run.
        after: Counters by component after it.
        servers: Names of the servers that are known.
    """
    faults = []
    for name in sorted(servers & set(before) & set(after)):
        old, new = (_configuration(reading[name]) for reading in (before, after))
        if old and new and old != new:
            faults.append(f"{name}: its cache is configured otherwise than before the run: it was replaced under way")
    named = set(rows.loc[rows["status"] == _OK, "server"].unique())
    strangers = sorted(named - servers - {""})
    if strangers and named & servers:
        faults.append(
            f"answers came from {', '.join(strangers)}, which is none of {', '.join(sorted(servers))}: a server took "
            "requests that was not there before, by a rolling restart or autoscaling"
        )
    if named & servers and not strangers and "" not in named:
        return Identity(tuple(faults))
    who = "answers do not name their server" if not strangers else f"answers name {', '.join(strangers)}"
    line = f"which server answered which request: {who} (start vLLM with --response-role assistant@NAME)"
    return Identity(tuple(faults), (line,))


def _configuration(counters: Counters) -> frozenset[str]:
    return frozenset(key for key in counters if key.startswith("vllm:cache_config_info"))

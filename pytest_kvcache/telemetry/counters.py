"""What every server's counters grew by between two readings, and whether the readings can be trusted at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pytest_kvcache.telemetry.prometheus import FOREIGN, STARTED

Counters = Mapping[str, float]

_ROUNDING = 1e-9
#: Counters that each rank of a server keeps for all ranks: the highest value stands for all (`ranks_as_one`).
_OF_ONE_RANK = frozenset(
    {
        "lmcache:local_cpu_hot_cache_count",
        "lmcache:num_lookup_hits_total",
        "lmcache:num_lookup_requests_total",
        "lmcache:num_lookup_tokens_total",
        "lmcache:num_prompt_tokens_total",
        "lmcache:num_requested_tokens_total",
        "lmcache:num_retrieve_requests_total",
        "lmcache:num_store_requests_total",
        "lmcache:num_stored_tokens_total",
        "lmcache:num_vllm_hit_tokens_total",
        "lmcache:time_to_retrieve_count",
        "lmcache:time_to_retrieve_sum",
        STARTED,
    }
)
#: Counters of which the lowest value among the ranks stands for all.
_FEWEST = frozenset({"lmcache:num_hit_tokens_total", "lmcache:num_remote_write_requests_total"})


def total(counters: Counters, name: str, **labels: str) -> float:
    """Return the sum of a counter over all of its label values, 0 where it is not there.

    Args:
        counters: Counters of one component, as `telemetry.prometheus` reads them.
        name: Name of the counter, without labels.
        **labels: Labels that a sample must carry to be counted.
    """
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(value for key, value in _samples(counters, name) if all(label in key for label in wanted))


def has(counters: Counters, name: str) -> bool:
    """Whether a counter is there, whatever its value."""
    return any(True for _ in _samples(counters, name))


def by_label(counters: Counters, name: str, label: str) -> dict[str, float]:
    """Return a counter by the values of one of its labels; samples that lack the label are under ""."""
    found: dict[str, float] = {}
    for key, value in _samples(counters, name):
        match = re.search(rf'[{{,]{label}="([^"]*)"', key)
        name_of = match.group(1) if match else ""
        found[name_of] = found.get(name_of, 0.0) + value
    return found


def lmcache_beside(server: str) -> str:
    """Return the name of a vLLM server's LMCache: that of the first rank where it runs in vLLM (`serving.names`)."""
    return server.replace("vllm", "lmcache", 1)


def lmcache_of(server: str, names: Iterable[str]) -> list[str]:
    """Return the components that are a vLLM server's LMCache: one, or one for each rank where it runs in vLLM.

    Args:
        server: Name of the vLLM server (`vllm-0`).
        names: Names of all components (`serving.names`).
    """
    own = lmcache_beside(server)
    return sorted(name for name in names if name == own or name.startswith(f"{own}."))


def ranks_as_one(counters: Mapping[str, Counters]) -> dict[str, Counters]:
    """Return the counters, with the several ranks of an LMCache inside vLLM as one, under the first rank's name.

    Every rank has a share of each token's KV. Every rank counts all tokens, chunks and requests, so that the count of
    one rank is taken; bytes, objects and failures are summed over the ranks. Of hits the lowest count is taken, since
    vLLM goes on from what all ranks have.

    Args:
        counters: Counters by component.
    """
    ranks: dict[str, list[Counters]] = {}
    for name, own in counters.items():
        ranks.setdefault(name.partition(".")[0], []).append(own)
    return {name: each[0] if len(each) == 1 else _one(each) for name, each in ranks.items()}


def _one(ranks: Sequence[Counters]) -> Counters:
    found: dict[str, float] = {}
    for key in dict.fromkeys(key for own in ranks for key in own):
        values = [own.get(key, 0.0) for own in ranks]
        name = key.partition("{")[0]
        found[key] = min(values) if name in _FEWEST else max(values) if name in _OF_ONE_RANK else sum(values)
    return found


def growth(before: Mapping[str, Counters], after: Mapping[str, Counters]) -> dict[str, dict[str, float]]:
    """Return by how much each counter of each component grew.

    A counter that appeared between the readings started at zero, as LMCache's do. A counter that did not grow is kept,
    at zero: that it is there says which kind of component it belongs to.

    Args:
        before: Counters by component, first reading.
        after: Counters by component, second reading.
    """
    found = {}
    for name, last in after.items():
        first = before.get(name, {})
        found[name] = {key: value - first.get(key, 0.0) for key, value in last.items()}
    return found


def faults(before: Mapping[str, Counters], after: Mapping[str, Counters]) -> list[str]:
    """Return why two readings say nothing about the time between them, an empty list where they do say something.

    A server whose process is another, or whose counters fell or are gone, was started anew within the run, and what it
    counted before is lost. An empty reading means that the endpoint did not answer, a reading of `FOREIGN` that it
    answered with something else (`telemetry.prometheus.scrape`).

    Args:
        before: Counters by component, read before the first request of the run.
        after: Counters by component, read after the last answer.
    """
    found = []
    for name in sorted({*before, *after}):
        first, last = before.get(name, {}), after.get(name, {})
        if FOREIGN in last or FOREIGN in first:
            found.append(
                f"{name}: its counters could not be read: /metrics answered with something that is no Prometheus text, "
                "a page of HTML for instance; another program has its port, or the engine has no such endpoint"
            )
        elif not last:
            found.append(f"{name}: its counters could not be read after the run; did it die? its log says why")
        elif not first:
            found.append(f"{name}: its counters could not be read before the run: what they grew by is not known")
        else:
            found += _restarted(name, first, last)
    return found


def _restarted(name: str, first: Counters, last: Counters) -> list[str]:
    began = first.get(STARTED), last.get(STARTED)
    fallen = [k for k, v in first.items() if _is_counter(k, first) and last.get(k, 0.0) < v - _ROUNDING]
    if None not in began and began[0] != began[1]:
        how = "its process is not the one of before"
    elif fallen:
        key = fallen[0]
        how = (
            f"{len(fallen)} counters fell during the run (first {key.partition('{')[0]}: {first[key]:g} -> "
            f"{last.get(key, 0.0):g})"
        )
    else:
        return []
    return [f"{name}: {how}: it was started anew, and its counters and its cache were lost; its log says why"]


def _samples(counters: Counters, name: str) -> list[tuple[str, float]]:
    return [(key, value) for key, value in counters.items() if key == name or key.startswith(name + "{")]


def _is_counter(key: str, counters: Counters) -> bool:
    """Whether a sample may only grow; LMCache has gauges whose names end in `_count` without a `_sum` beside them."""
    name, brace, labels = key.partition("{")
    for suffix, other in (("_count", "_sum"), ("_sum", "_count")):
        if name.endswith(suffix):
            return f"{name.removesuffix(suffix)}{other}{brace}{labels}" in counters
    return name.endswith("_total")

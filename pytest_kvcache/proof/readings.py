"""Two readings of every server's counters: what grew between them, and whether they can be trusted at all."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pytest_kvcache.telemetry.prometheus import STARTED

Counters = Mapping[str, float]

_ROUNDING = 1e-9


def total(counters: Counters, name: str, **labels: str) -> float:
    """Return the sum of a counter over all of its label values, 0 where it is not there.

    Args:
        counters: As `telemetry.prometheus` reads them.
        name: Without labels.
        **labels: Only samples that carry these.
    """
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(value for key, value in _samples(counters, name) if all(label in key for label in wanted))


def has(counters: Counters, name: str) -> bool:
    """Whether a counter is there, whatever its value."""
    return any(True for _ in _samples(counters, name))


def by_label(counters: Counters, name: str, label: str) -> dict[str, float]:
    """Return a counter by the values of one of its labels; samples that lack it are under ""."""
    found: dict[str, float] = {}
    for key, value in _samples(counters, name):
        match = re.search(rf'[{{,]{label}="([^"]*)"', key)
        name_of = match.group(1) if match else ""
        found[name_of] = found.get(name_of, 0.0) + value
    return found


def growth(before: Mapping[str, Counters], after: Mapping[str, Counters]) -> dict[str, dict[str, float]]:
    """Return by how much each counter of each component grew; one that appeared started at zero, as LMCache's do.

    Those that did not grow stay, at zero: that a counter is there says which kind of component it belongs to.

    Args:
        before: By component.
        after: By component.
    """
    found = {}
    for name, last in after.items():
        first = before.get(name, {})
        found[name] = {key: value - first.get(key, 0.0) for key, value in last.items()}
    return found


def faults(before: Mapping[str, Counters], after: Mapping[str, Counters]) -> list[str]:
    """Return why two readings say nothing about the time between them, nothing where they do.

    A server whose process is another, or whose counters fell or are gone, was started anew within the run, and what it
    counted before is lost. An empty reading is an endpoint that did not answer (`telemetry.prometheus.scrape`).

    Args:
        before: By component, read before the first request of the run.
        after: By component, read after the last answer.
    """
    found = []
    for name in sorted({*before, *after}):
        first, last = before.get(name, {}), after.get(name, {})
        if not last:
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

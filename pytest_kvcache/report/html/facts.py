"""Probes, environment, versions, and every command, as tables with the files that they are from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_kvcache.report.html.loads import Load
from pytest_kvcache.report.html.page import FILE, Section, Table, number, once


def probes(loads: Sequence[Load]) -> Section:
    """Return what was found before the loads of each boot.

    Args:
        loads: All.
    """
    boots = {load.boot: load for load in loads if load.probes}
    summary, asked = [], []
    for load in boots.values():
        found = load.probes
        largest = found.get("largest_logprob_difference")
        said = "; ".join(f"{k}: {v}" for k, v in largest.items()) if isinstance(largest, dict) else "-"
        faults = "; ".join(map(str, _list(found.get("faults")))) or "none"
        unchecked = "; ".join(map(str, _list(found.get("unchecked")))) or "none"
        summary.append((load.boot, faults, unchecked, said or "-", _text(found.get("took_s")), load.probes_file))
        for each in _list(found.get("asked")):
            if isinstance(each, dict):
                keys = ("step", "server", "sentinel", "prompt_tokens", "cached_tokens")
                answer = " ".join(map(str, _list(each.get("answer"))))
                asked.append((load.boot, *(_text(each.get(key)) for key in keys), answer, load.probes_file))
    tables = []
    if summary:
        columns = ("boot", "faults", "not looked at", "largest log-probability difference", "took s", FILE)
        tables.append(Table("What the probes found", columns, tuple(summary)))
    if asked:
        columns_asked = ("boot", "step", "server", "sentinel of", "prompt tokens", "cached tokens", "answer", FILE)
        tables.append(Table("Every sentinel that was sent", columns_asked, tuple(asked), folded=True))
    return Section(
        key="probes",
        title="Probes",
        intro="Before its load each boot is tested: is it cold, is storage shared, are answers of all levels the same?",
        tables=tuple(tables),
    )


def environment(loads: Sequence[Load]) -> Section:
    """Return versions, what is compared, the environment and the canary's readings; what all boots share stands once.

    Args:
        loads: All.
    """
    tables = [
        _shared("Versions", [(load, load.facts.versions) for load in loads]),
        _shared("Keys that must be equal for a comparison", [(load, load.facts.comparability) for load in loads]),
        _shared("Balancer, and where it sent the requests", [(load, _balancer(load)) for load in loads]),
        _shared("Environment of the processes", [(load, _flat(load.facts.environment)) for load in loads]),
    ]
    canary = tuple(
        (load.boot, name, number(value), load.facts_file)
        for load in {load.boot: load for load in loads}.values()
        for name, value in load.facts.canary.items()
    )
    tables.append(Table("Canary: readings around each boot", ("boot", "reading", "s", FILE), canary, folded=True))
    lacks = once(f"older engine: {line}" for load in loads for line in load.facts.engine_lacks)
    return Section(
        key="environment",
        title="Environment and versions",
        tables=tuple(table for table in tables if table.rows),
        lines=lacks,
    )


def commands(loads: Sequence[Load]) -> Section:
    """Return the command line of every component; what all boots of a tier share but ports and folders is not merged.

    Args:
        loads: All.
    """
    rows = tuple(
        (load.boot, name, shlex.join(argv), load.facts_file)
        for load in {load.boot: load for load in loads}.values()
        for name, argv in load.facts.commands.items()
    )
    ready = tuple(
        (load.boot, number(load.facts.boot_s, 3), load.facts_file)
        for load in {load.boot: load for load in loads}.values()
        if load.facts.boot_s is not None
    )
    tables = [
        Table("Every command", ("boot", "component", "command", FILE), rows, folded=True),
        Table("Seconds until servers were ready", ("boot", "s", FILE), ready, folded=True),
    ]
    return Section("commands", "Commands", tables=tuple(table for table in tables if table.rows))


def _balancer(load: Load) -> dict[str, str]:
    facts = load.facts
    return _flat({key: each for key, each in facts.balancer.items() if key != "promises"}) | _flat(facts.proof.routing)


def _shared(caption: str, found: Sequence[tuple[Load, Mapping[str, Any]]]) -> Table:
    """Return a row a key and value, with the boots that have it where not all do."""
    values: dict[tuple[str, str], list[Load]] = {}
    for load, facts in found:
        for key, value in facts.items():
            values.setdefault((key, _text(value)), []).append(load)
    rows = []
    for (key, value), loads in sorted(values.items(), key=lambda each: each[0]):
        where = "all" if len(loads) == len(found) else ", ".join(once(load.place for load in loads))
        rows.append((key, value, where, loads[0].facts_file))
    return Table(caption, ("key", "value", "loads", FILE), tuple(rows), folded=True)


def _flat(found: object, prefix: str = "") -> dict[str, str]:
    """Return nested data as one level of dotted keys."""
    if not isinstance(found, Mapping):
        return {prefix: _text(found)} if prefix and found not in (None, "", [], {}) else {}
    flat: dict[str, str] = {}
    for key, value in found.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _text(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []

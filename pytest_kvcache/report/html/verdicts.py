"""What each session came to: a row a cell, then every gate with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_kvcache.report.html.loads import Load
from pytest_kvcache.report.html.page import FILE, Section, Table, number, once
from pytest_kvcache.report.verdict_file import NAME, CellFacts, Verdicts

#: What a cell without a verdict came to: it was measured and not compared.
_UNJUDGED = "measured"


def section(loads: Sequence[Load], told: Mapping[Path, Verdicts]) -> Section:
    """Return verdicts by cell and by gate, and what of the loads makes figures invalid or doubtful.

    Args:
        loads: All.
        told: By folder of the session, what it came to.
    """
    cells = [(f"{folder.name}/{NAME}", cell) for folder, verdicts in told.items() for cell in verdicts.cells]
    rows = [
        (each.label, str(each.context_tokens), each.outcome, str(len(each.loads)), _why(each), file)
        for file, each in cells
    ]
    known = {(folder, cell.label, cell.context_tokens) for folder, found in told.items() for cell in found.cells}
    for load in loads:
        if (load.session, load.facts.label, load.context_tokens) not in known:
            status = "invalid" if load.facts.faults else _UNJUDGED
            why = "; ".join((*load.facts.faults, *load.facts.suspicions)) or "-"
            rows.append((load.label, str(load.context_tokens), status, "1", why, load.facts_file))
    tables = [Table("Outcome of each cell", ("tier", "context", "outcome", "boots", "why", FILE), tuple(rows))]
    gates = tuple(
        (
            each.label,
            str(each.context_tokens),
            gate.label,
            number(gate.old),
            number(gate.new),
            f"{gate.worse_by:+z.1%}",
            f"{_share(gate.low)} … {_share(gate.high)}",
            _share(gate.margin),
            gate.outcome,
            file,
        )
        for file, each in cells
        for gate in each.gates
    )
    if gates:
        columns = ("tier", "context", "metric", "old", "new", "worse by", "interval", "margin", "outcome", FILE)
        tables.append(Table("Every gate against its baseline", columns, gates))
    lines = [f"{each.label} at {each.context_tokens}: {line}" for _, each in cells for line in each.declared]
    lines += [line for found in told.values() for line in found.gains]
    lines += [f"{each.label} at {each.context_tokens}: {line}" for _, each in cells for line in each.explanation]
    lines += [f"suspect: {load.cell}: {line}" for load in loads for line in load.facts.suspicions]
    lines += [f"invalid: {load.cell}: {line}" for load in loads for line in load.facts.faults]
    return Section(
        key="verdicts",
        title="Verdicts",
        intro="Worse is positive for every metric: more time, or less throughput. Boots are the replicates.",
        tables=tuple(tables),
        lines=once(lines),
    )


def _share(value: float) -> str:
    return f"{value:+z.1%}" if abs(value) < 10 else "not known"


def _why(cell: CellFacts) -> str:
    return "; ".join((*cell.reasons, *cell.notes)) or "-"

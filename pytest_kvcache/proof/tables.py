"""The ledger as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from pytest_kvcache.proof.ledger import Ledger, Tokens


@dataclass(frozen=True)
class LedgerRow:
    """The ledger of one cell, for a table.

    Args:
        label: The tier's name.
        context_tokens: Length of the user context.
        ledger: Measured.
        expected: By server, what an LRU hierarchy gives; empty where nothing was computed.
    """

    label: str
    context_tokens: int
    ledger: Ledger
    expected: Mapping[str, Tokens] = field(default_factory=dict)


def ledger_table(rows: Sequence[LedgerRow], *, servers: bool = False) -> str:
    """Return where prompt tokens came from, in percent of all; what was expected stands behind it in brackets.

    Args:
        rows: A cell each.
        servers: A line for each server too.
    """
    lines = []
    for row in rows:
        whole = sum(row.expected.values(), Tokens()) if row.expected else None
        lines.append(_line(row, "all", row.ledger.total, whole))
        if servers:
            lines += [_line(row, name, own, row.expected.get(name)) for name, own in row.ledger.servers.items()]
    return pd.DataFrame(lines).to_string(index=False) if lines else ""


def _line(row: LedgerRow, server: str, tokens: Tokens, expected: Tokens | None) -> dict[str, str]:
    moves = row.ledger.moved.values() if server == "all" else [row.ledger.moved[server]]
    line = {
        "tier": row.label,
        "context": str(row.context_tokens),
        "server": server,
        "prompt tokens": f"{tokens.total:.0f}",
    }
    for title, name in (("computed", "computed"), ("device", "device"), ("L1", "l1"), ("L2", "l2")):
        line[title] = _share(name, tokens, expected)
    if tokens.other:
        line["elsewhere"] = _share("other", tokens, None)
    line["lost"] = f"{tokens.lost:.0f}"
    line["L2 chunks stored/loaded"] = f"{sum(m.l2_stored for m in moves):.0f}/{sum(m.l2_loaded for m in moves):.0f}"
    return line


def _share(name: str, tokens: Tokens, expected: Tokens | None) -> str:
    if not tokens.total:
        return "-"
    measured = f"{getattr(tokens, name) / tokens.total:.0%}"
    if expected is None or not expected.total:
        return measured
    return f"{measured} ({getattr(expected, name) / expected.total:.0%})"

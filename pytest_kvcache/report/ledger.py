"""The ledger as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from pytest_kvcache.proof.ledger import Ledger, Tokens
from pytest_kvcache.proof.storage_account import AccountProof, LmcacheAccount


@dataclass(frozen=True)
class LedgerRow:
    """The ledger of one cell, for a table.

    Args:
        label: The tier's name.
        context_tokens: Length of the user context.
        ledger: Measured.
        expected: By server, what an LRU hierarchy gives; empty where nothing was computed.
        storage: What the storage itself says.
    """

    label: str
    context_tokens: int
    ledger: Ledger
    expected: Mapping[str, Tokens] = field(default_factory=dict)
    storage: AccountProof = field(default_factory=AccountProof)


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
    return pd.DataFrame(lines).fillna("-").to_string(index=False) if lines else ""


def storage_table(rows: Sequence[LedgerRow]) -> str:
    """Return what LMCache says of each tier's storage beside what the storage says, "" where no tier has an account.

    `there` is since the boot, the rest of the load alone: written and read by the mount, or both together by the S3
    server.

    Args:
        rows: A cell each.
    """
    lines = [_storage_line(row, row.storage.claimed) for row in rows if row.storage.claimed is not None]
    return pd.DataFrame(lines).fillna("-").to_string(index=False) if lines else ""


def _storage_line(row: LedgerRow, claimed: LmcacheAccount) -> dict[str, str]:
    found = row.storage.check.figures
    line = {
        "tier": row.label,
        "context": str(row.context_tokens),
        "LMCache stored/loaded MB": f"{claimed.stored / 1e6:.1f}/{claimed.loaded / 1e6:.1f}",
        "there: files": f"{found['files']:.0f}",
        "MB": f"{found['file_bytes'] / 1e6:.1f}",
    }
    if "mount_written_bytes" in found:
        moved = (found["mount_written_bytes"] / 1e6, found["mount_read_bytes"] / 1e6)
        line["mount wrote/read MB"] = f"{moved[0]:.1f}/{moved[1]:.1f}"
        line["by layout w/r"] = f"{found['pnfs_writes']:.0f}/{found['pnfs_reads']:.0f}"
    if "served_bytes" in found:
        line["server moved MB"] = f"{found['served_bytes'] / 1e6:.1f}"
    return line | {"account of": row.storage.source}


def _line(row: LedgerRow, server: str, tokens: Tokens, expected: Tokens | None) -> dict[str, str]:
    moves = row.ledger.transfers.values() if server == "all" else [row.ledger.transfers[server]]
    line = {
        "tier": row.label,
        "context": str(row.context_tokens),
        "server": server,
        "prompt tokens": f"{tokens.total:.0f}",
    }
    # LMCache before 0.5.5 does not tell L1 from L2; other rows of the table may have both.
    levels = (("L1+L2", "offloaded"),) if tokens.unsplit else (("L1", "l1"), ("L2", "l2"))
    for title, name in (("computed", "computed"), ("device", "device"), *levels):
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

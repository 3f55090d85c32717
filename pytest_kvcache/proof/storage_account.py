"""Compare LMCache's account of a shared storage with what the storage says of itself.

- The listing counts from the boot: a chunk that several servers stored is one file, so the bytes there lie between the
  most that one LMCache stored and the sum over all of them. Fewer bytes are a fault, and so are more, since the storage
  is the boot's own (LMCache inside vLLM counts with a delay of 10 s, so more bytes mean nothing there).
- An S3 server of the run's own counts the bytes that it moved during the load: at least those that LMCache stored and
  loaded. Other users of the server and repeated requests can only add to them.
- An NFS mount has counters of the load: see `mount_account`.

The tolerance is 2 %, for headers of files and the rounding of a chunk's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_kvcache.load.snapshot import Snapshot
from pytest_kvcache.storage.account import StorageReading
from pytest_kvcache.telemetry.cache_sizes import kv_bytes_per_token
from pytest_kvcache.telemetry.counters import Counters, growth, ranks_as_one
from pytest_kvcache.telemetry.transfers import Transfers, transfers_of

TOLERANCE = 0.02


@dataclass(frozen=True)
class LmcacheAccount:
    """What the LMCaches of a pair say of the shared storage, in bytes.

    Args:
        least: Bytes that must be there: the most that one LMCache stored since the boot.
        most: Bytes that can be there: the sum that all of them stored since the boot.
        stored: Bytes that all of them stored during the load.
        loaded: Bytes that all of them loaded during the load.
    """

    least: float
    most: float
    stored: float
    loaded: float


@dataclass(frozen=True)
class AccountCheck:
    """The result of one check.

    Args:
        faults: Why LMCache's account does not hold, a line each.
        findings: What makes times doubtful, a line each.
        unchecked: What could not be checked and why, a line each.
        figures: Figures for the report by name, in bytes, numbers or shares.
    """

    faults: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: AccountCheck) -> AccountCheck:
        return AccountCheck(
            self.faults + other.faults,
            self.findings + other.findings,
            self.unchecked + other.unchecked,
            {**self.figures, **other.figures},
        )


@dataclass(frozen=True)
class AccountProof:
    """The result of all checks of LMCache's account.

    Args:
        source: Name of the storage's account, "" where the storage gives none.
        claimed: LMCache's account; None where its counters or the storage could not be read.
        check: Sum of all checks.
    """

    source: str = ""
    claimed: LmcacheAccount | None = None
    check: AccountCheck = field(default_factory=AccountCheck)

    def facts(self) -> dict[str, Any]:
        """Return the proof for `run.json`."""
        return {
            "storage_account": self.source,
            "claimed_bytes": vars(self.claimed) if self.claimed else None,
            "figures": dict(self.check.figures),
        }


def claims(before: Snapshot, after: Snapshot, *, chunk_tokens: int) -> LmcacheAccount:
    """Return LMCache's account of a load; each figure but `most` is as small as the two readings allow.

    Args:
        before: Readings before the load.
        after: Readings after the load.
        chunk_tokens: LMCache's chunk size (tokens).
    """
    grown = _moves(ranks_as_one(before.last), ranks_as_one(after.first))
    size = kv_bytes_per_token(ranks_as_one(after.last), chunk_tokens=chunk_tokens)
    # Where L1 is empty just now, the size of the files tells how large a chunk is.
    chunk = size * chunk_tokens if size else _file_bytes(after.account)

    def stored(each: Transfers) -> float:
        # The file system adapter of an LMCache server before 0.5.3 counts chunks but not bytes.
        return each.stored_bytes or (0.0 if each.in_process else each.l2_stored * chunk)

    return LmcacheAccount(
        least=max((stored(transfers_of(own)) for own in ranks_as_one(after.first).values()), default=0.0),
        most=sum(stored(transfers_of(own)) for own in after.last.values()),
        stored=sum(map(stored, grown)),
        loaded=sum(each.loaded_bytes or each.l2_loaded * chunk for each in grown),
    )


def of_listing(account: StorageReading, claimed: LmcacheAccount, *, settled: bool) -> AccountCheck:
    """Compare the files of a boot with what LMCache stored since the boot.

    Args:
        account: Reading of the storage after the load.
        claimed: LMCache's account.
        settled: Whether all stores had ended.
    """
    figures = {"files": float(account.files), "file_bytes": float(account.bytes)}
    there = f"{account.bytes / 1e6:.1f} MB in {account.files} files are there"
    if account.bytes < claimed.least * (1 - TOLERANCE):
        lost = (
            f"LMCache says that it stored {claimed.least / 1e6:.1f} MB and more, and {there}: something removes or "
            "shortens them, or the folder or bucket that is looked at is not the one that LMCache writes to"
        )
        return AccountCheck((lost,), figures=figures)
    if settled and account.bytes > claimed.most * (1 + TOLERANCE):
        foreign = (
            f"LMCache says that it stored {claimed.most / 1e6:.1f} MB, and {there}: something else writes to the tier, "
            "and may have answered for it"
        )
        return AccountCheck((foreign,), figures=figures)
    open_ends = () if settled else ("whether more is in the storage than was stored: stores were still under way",)
    return AccountCheck(unchecked=open_ends, figures=figures)


def of_server(before: StorageReading, after: StorageReading, claimed: LmcacheAccount) -> AccountCheck:
    """Compare the bytes that an S3 server moved during a load with those that LMCache stored and loaded.

    Args:
        before: Reading of the storage before the load.
        after: Reading of the storage after the load.
        claimed: LMCache's account.
    """
    if before.served_bytes is None or after.served_bytes is None:
        return AccountCheck()
    served, due = after.served_bytes - before.served_bytes, claimed.stored + claimed.loaded
    figures = {"served_bytes": served}
    if served < 0:
        return AccountCheck(
            ("the S3 server was started anew during the load: what it held may be lost",), figures=figures
        )
    if served >= due * (1 - TOLERANCE):
        return AccountCheck(figures=figures)
    line = (
        f"LMCache says that it stored {claimed.stored / 1e6:.1f} MB and loaded {claimed.loaded / 1e6:.1f}, and its S3 "
        f"server moved {served / 1e6:.1f}: something else answered"
    )
    return AccountCheck((line,), figures=figures)


def _moves(before: Mapping[str, Counters], after: Mapping[str, Counters]) -> list[Transfers]:
    return [transfers_of(own) for own in growth(before, after).values()]


def _file_bytes(account: StorageReading | None) -> float:
    return account.bytes / account.files if account and account.files else 0.0

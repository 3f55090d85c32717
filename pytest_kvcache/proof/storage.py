"""Compare the storage's own account of one load with LMCache's in one call: listing, server, mount (pure)."""

from __future__ import annotations

from pytest_kvcache.load.snapshot import Snapshot
from pytest_kvcache.proof.ledger import Ledger
from pytest_kvcache.proof.mount_account import of_mount
from pytest_kvcache.proof.storage_account import (
    AccountCheck,
    AccountProof,
    LmcacheAccount,
    claims,
    of_listing,
    of_server,
)
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.storage.account import ROOM, StorageReading
from pytest_kvcache.storage.requirement import Require


def compare_accounts(
    storage_account: str, require: Require, before: Snapshot, after: Snapshot, *, chunk_tokens: int
) -> AccountProof:
    """Compare what LMCache says of a load with what the storage says.

    Args:
        storage_account: Name of the storage's account.
        require: What the tier requires of its mount.
        before: Readings before the load.
        after: Readings after the load.
        chunk_tokens: LMCache's chunk size (tokens).
    """
    unread = tuple(f"the storage does not say what it holds: {look.unread}" for look in (before, after) if look.unread)
    if before.account is None or after.account is None:
        return AccountProof(storage_account, check=AccountCheck(unread))
    claimed = claims(before, after, chunk_tokens=chunk_tokens)
    check = compare_readings(before.account, after.account, claimed, require, settled=not after.under_way)
    return AccountProof(storage_account, claimed, check)


def compare_readings(
    before: StorageReading, after: StorageReading, claimed: LmcacheAccount, require: Require, *, settled: bool
) -> AccountCheck:
    """Compare what was stored and loaded with two readings of the storage.

    Args:
        before: Reading before the load.
        after: Reading after the load.
        claimed: LMCache's account of the load.
        require: What the tier requires of its mount.
        settled: Whether all stores had ended.
    """
    check = of_listing(after, claimed, settled=settled)
    check += of_server(before, after, claimed)
    if after.full:
        # A pNFS client calls it an error of the layout, and may try again without end.
        return check + AccountCheck((f"{after.full}, and what LMCache stores from then on is lost: {ROOM}",))
    if before.mount is not None and after.mount is not None:
        check += of_mount(before.mount, after.mount, claimed, require)
    elif before.mount is not None or after.mount is not None:
        check += AccountCheck(("the tier's folder was mounted or unmounted during the load",))
    elif after.served_bytes is None:
        check += AccountCheck(unchecked=("bytes that were loaded: nothing of this storage counts reads",))
    return check


def without_account(claim: Claim, ledger: Ledger) -> AccountProof:
    """Return the proof for a tier whose storage gives no account: empty unless the tier claims an L2.

    For a claim of L2 the missing account is noted as unchecked. Where LMCache does not tell L1 from L2, the claim would
    have rested on the account, so that its absence is a fault.

    Args:
        claim: Claim of the tier.
        ledger: Ledger of the run.
    """
    if claim is not Claim.L2:
        return AccountProof()
    if ledger.total.unsplit:
        fault = (
            "this LMCache does not tell L1 from the shared storage, and no account of this adapter's storage is known: "
            "that anything came from the storage is not proved; LMCache 0.5.5 and newer tell it"
        )
        return AccountProof(check=AccountCheck((fault,)))
    line = "the storage's own account: none is known for this adapter"
    return AccountProof(check=AccountCheck(unchecked=(line,)))

"""Compare expected hits with measured ones: a large gap is a finding, with its likely cause."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_kvcache.proof.ledger import Ledger, Tokens

#: A gap of this share of all prompt tokens is worth a line. The oracle agreed with real, unloaded runs to the token;
#: where requests overlap, a server has fewer hits in the device cache than the oracle expects.
LARGE = 0.1


def hit_differences(expected: Mapping[str, Tokens], measured: Ledger, *, large: float = LARGE) -> list[str]:
    """Return a line for each server and level whose hits are far from what an LRU hierarchy gives.

    Device hits, external hits and the tokens that LMCache found in L2 are compared; the tokens found are counted, not
    derived by a split. Where LMCache does not tell L1 from L2, L2 is left out.

    Args:
        expected: Expected tokens by server (`expected_hits.simulate`).
        measured: Ledger of the same requests.
        large: Share of the server's prompt tokens from which a gap is a finding.
    """
    found = []
    for server in sorted({*expected, *measured.servers}):
        want, have = expected.get(server, Tokens()), measured.servers.get(server, Tokens())
        whole = max(want.total, have.total)
        if not whole:
            continue
        moved = measured.transfers.get(server)
        unstored = moved is not None and moved.l2_unstored > 0
        for level, wanted, got in (
            ("the device cache", want.device, have.device),
            ("LMCache", want.external, have.external),
            ("L2", want.l2_found, have.l2_found),
        ):
            if abs(wanted - got) / whole <= large or (level == "L2" and have.unsplit_found):
                continue
            found.append(
                f"{server}: {got / whole:.0%} of its prompt tokens from {level}, {wanted / whole:.0%} expected: "
                f"{_cause(level, want, have, less=got < wanted, unstored=unstored)}"
            )
    return found


def warm_start_faults(expected: Mapping[str, Tokens], measured: Ledger, *, large: float = LARGE) -> list[str]:
    """Return a line for each server that had more of its prompts in caches than the run can have put there.

    An L2 without limit holds all that was computed before a request, so the hits of the oracle in all levels together
    are the most that a cold start can give, whichever requests evict each other.

    Args:
        expected: Expected tokens by server (`expected_hits.simulate`), of a tier with an L2.
        measured: Ledger of the same requests.
        large: Share of the server's prompt tokens from which an excess is a fault.
    """
    found = []
    for server, want in expected.items():
        have = measured.servers.get(server, Tokens())
        most, got = want.cached, have.cached
        if have.total and (got - most) / have.total > large:
            found.append(
                f"{server} had {got / have.total:.0%} of its prompt tokens in caches, and {most / have.total:.0%} is "
                "the most that this run can have put there: the storage held what an earlier run left; empty it, or "
                "give the tier one of its own"
            )
    return found


def _cause(level: str, want: Tokens, have: Tokens, *, less: bool, unstored: bool) -> str:
    if abs(want.total - have.total) > LARGE * max(want.total, have.total):
        return "the router gave it other requests than were thought"
    if level == "the device cache":
        return (
            "requests that ran side by side evicted each other, or the prefix cache is smaller or off"
            if less
            else "the device cache is larger than the profile says"
        )
    if not less:
        return (
            "less came from L1: it is smaller than the profile says, or what it held was evicted"
            if level == "L2" and have.l1_found < want.l1_found
            else "something was in the tier before the run: the start was not cold"
        )
    if unstored:
        return "stores failed"
    if not have.requested:
        return "LMCache was never asked"
    return "it was evicted, was not stored yet when it was asked for, or has other keys on the other server"

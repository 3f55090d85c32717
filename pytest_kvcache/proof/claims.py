"""Check a tier's claim by rules on the ledger. A claim that does not hold makes a run invalid; the cause is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_kvcache.proof.ledger import Ledger, Tokens
from pytest_kvcache.serving.claim import Claim
from pytest_kvcache.telemetry.transfers import Transfers


@dataclass(frozen=True)
class ClaimCheck:
    """The result of a check of a claim.

    Args:
        faults: Why the claim does not hold, a line each; empty where it holds.
        unchecked: What could not be checked and why, a line each. These are no faults: the run is judged, but proves
            less.
    """

    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expectable:
    """Whether the workload can have hits at all (`expected_hits.expectable`).

    Args:
        l1: Why no hit in L1 can be expected, "" where one can.
        l2: Why no hit in L2 can be expected, "" where one can.
    """

    l1: str = ""
    l2: str = ""


#: LMCache's reasons for a failed load, in words for people.
_LOAD_FAILURES = {
    "not_found": "the storage said that it had them: something removes them during the run, or reads fail",
    "l1_oom": "L1 had no room for them: raise the profile's l1_size_gb",
    "read": "L1 lost them between lookup and read: raise the profile's l1_size_gb",
    "get": "reads from the storage fail",
}


def check_claim(
    claim: Claim,
    ledger: Ledger,
    expectable: Expectable = Expectable(),
    *,
    idle_is_fault: bool = True,
    routed_here: bool = True,
) -> ClaimCheck:
    """Compare a tier's claim with the ledger of a run.

    Failures (stores, loads, dropped events) are faults whatever the workload; hits are asked for only where the
    workload can have any.

    Args:
        claim: Claim of the tier.
        ledger: Ledger of the run.
        expectable: Hits that the workload can have.
        idle_is_fault: Whether a server without a request breaks what the balancer promises.
        routed_here: Whether the run's own router spreads the requests; another one may leave a server out.
    """
    tokens = ledger.total
    idle = _routing(ledger)
    found = [*idle] if idle_is_fault and routed_here else []
    elsewhere = [] if routed_here else [*idle]
    if claim is Claim.DEVICE:
        return ClaimCheck((*found, *_no_offload(ledger)), tuple(elsewhere))
    for name, moved in ledger.transfers.items():
        found += _failures(name, moved)
    unchecked = [*elsewhere]
    if expectable.l1 and (claim is Claim.L1 or expectable.l2):
        unchecked.append(f"hits in {claim.upper()} were not asked for: {expectable.l1}")
    elif claim is Claim.L1:
        found += _hits_in_l1(ledger)
    elif expectable.l2:
        unchecked.append(f"hits in L2 were not asked for: {expectable.l2}")
    else:
        found += _hits_in_l2(ledger)
    loaded = sum(moved.l2_loaded for moved in ledger.transfers.values())
    if claim is Claim.L2 and tokens.unsplit:
        unchecked.append(
            f"which of {tokens.unsplit:.0f} tokens came from L1 and which from the shared storage: this LMCache does "
            f"not say (0.5.5 and newer do); the claim rests on {loaded:.0f} chunks loaded and on the storage's account"
        )
    if claim is Claim.L1 and (tokens.l2_found or (tokens.unsplit and loaded)):
        what = f"{tokens.l2_found:.0f} tokens were found in" if tokens.l2_found else f"{loaded:.0f} chunks came from"
        found.append(f"{what} an L2 that this tier does not have: LMCache's configuration is that of another tier")
    if tokens.other:
        found.append(
            f"{tokens.other:.0f} tokens came through vLLM's connector and LMCache did not find them: another connector "
            "is loaded, or LMCache's counters are not complete; compare --kv-transfer-config in run.json"
        )
    return ClaimCheck(tuple(found), tuple(unchecked))


def _routing(ledger: Ledger) -> list[str]:
    served = {name: tokens.total for name, tokens in ledger.servers.items()}
    idle = [name for name, count in served.items() if not count]
    if not idle or len(idle) == len(served) or len(served) < 2:
        return []
    rest = ", ".join(f"{name} {count:.0f}" for name, count in served.items() if count)
    return [
        f"{', '.join(idle)} got not one prompt token ({rest}): the router sends everything elsewhere; read its log for "
        "a worker that it thinks dead, and look at its policy"
    ]


def _no_offload(ledger: Ledger) -> list[str]:
    return [
        f"{name} took {tokens.external:.0f} prompt tokens from a connector, and the tier claims vLLM alone: a "
        "--kv-transfer-config or LMCACHE_CONFIG_FILE came from the profile or the environment"
        for name, tokens in ledger.servers.items()
        if tokens.external
    ]


def _failures(name: str, moved: Transfers) -> list[str]:
    found = []
    if moved.l2_unstored:
        how_many = "none was" if not moved.l2_stored else f"{moved.l2_unstored:.0f} were not"
        found.append(
            f"{name}'s LMCache handed {moved.l2_sent:.0f} chunks to the shared storage and {how_many} stored: its "
            "log says why"
        )
    for reason, count in moved.failed_loads.items():
        found.append(
            f"{name}'s LMCache found {count:.0f} chunks and could not load them ({reason}): "
            f"{_LOAD_FAILURES.get(reason, 'read its log')}"
        )
    if moved.no_room:
        found.append(f"{moved.no_room:.0f} chunks of {name} did not fit into L1: raise the profile's l1_size_gb")
    if moved.dropped_events:
        found.append(
            f"{name}'s LMCache dropped {moved.dropped_events:.0f} events: its counters are too low and prove nothing; "
            "the machine is too busy, or the run too fast for its event bus"
        )
    return found


def _hits_in_l1(ledger: Ledger) -> list[str]:
    tokens = ledger.total
    if tokens.l1 + tokens.unsplit > 0:
        return []
    return [f"no prompt token came from L1: {_why_nothing(tokens, ledger.transfers)}"]


def _hits_in_l2(ledger: Ledger) -> list[str]:
    tokens, moves = ledger.total, ledger.transfers.values()
    loaded = sum(m.l2_loaded for m in moves)
    if tokens.l2 > 0 and loaded > 0:
        return []
    if tokens.l2 > 0:
        return [
            f"{tokens.l2:.0f} prompt tokens are said to be from the shared storage, and nothing was loaded from it: "
            "LMCache's counters contradict each other"
        ]
    # Chunks were loaded from L2, but no token is from L2. Where LMCache tells the levels, vLLM had these tokens itself
    # by the time they were loaded, which expected against measured hits show. Where LMCache does not tell them, the
    # number of tokens from the storage is not known, and `check_claim` says so.
    elsewhere = tokens.l1 + tokens.unsplit
    if elsewhere > 0 and loaded > 0:
        return []
    if elsewhere > 0:
        why = _why_only_l1(ledger.transfers)
        return [f"no prompt token came from the shared storage, {elsewhere:.0f} from L1: {why}"]
    return [f"no prompt token came from the shared storage: {_why_nothing(tokens, ledger.transfers)}"]


def _why_only_l1(moves: Mapping[str, Transfers]) -> str:
    stored = sum(m.l2_stored for m in moves.values())
    if stored:
        return (
            f"{stored:.0f} chunks were stored there and no server finds those of another: they use different keys "
            "(PYTHONHASHSEED, another model path), buckets or folders"
        )
    if any(m.l2_sent for m in moves.values()):
        return "every store into it failed"
    without = max(moves.values(), key=lambda m: m.in_process, default=Transfers()).without_storage
    return f"nothing was stored there: {without}"


def _why_nothing(tokens: Tokens, moves: Mapping[str, Transfers]) -> str:
    lookups = sum(m.lookups for m in moves.values())
    if tokens.external:
        return f"{tokens.external:.0f} came from elsewhere"
    if not lookups and not tokens.requested:
        return (
            "LMCache was never asked. The connector is not loaded or does nothing: look at --kv-transfer-config in "
            "run.json and at vLLM's log for the connector's name"
        )
    stored = sum(m.l1_stored + m.l2_stored for m in moves.values())
    sent = sum(m.l2_sent for m in moves.values())
    if tokens.found:
        return (
            f"LMCache found {tokens.found:.0f} tokens and vLLM took none of them: it had them "
            "itself (the device cache is too large for this workload), or every load failed"
        )
    if not stored:
        why = "every store into the shared storage failed" if sent else "nothing was stored"
        return f"LMCache was asked for {tokens.requested:.0f} tokens and had none: {why}; read its log"
    return (
        f"LMCache was asked for {tokens.requested:.0f} tokens and found none of what was stored: keys differ from "
        "request to request (PYTHONHASHSEED, salt), or it was evicted at once (l1_size_gb)"
    )

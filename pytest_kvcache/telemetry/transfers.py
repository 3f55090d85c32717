"""What one LMCache moved between its levels (L1, L2), in chunks and bytes, and which transfers failed."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_kvcache.telemetry.counters import Counters, by_label, total

_L2 = "lmcache_mp_l2"
#: Reasons of failed loads that are no fault: another request was just bringing the chunk to L1.
_HARMLESS = frozenset({"l1_contended"})


@dataclass(frozen=True)
class Transfers:
    """Traffic of one LMCache.

    Args:
        lookups: Number of times that a prompt was looked up.
        l1_stored: Chunks that were written to L1 (in-process: tokens).
        l2_sent: Chunks handed to the shared storage (in-process: write requests).
        l2_stored: Those of `l2_sent` that were stored.
        l2_unstored: Those of `l2_sent` that failed; stores that were still under way are not counted.
        l2_loaded: Chunks loaded from the shared storage (in-process: read requests).
        stored_bytes: Bytes written to the shared storage.
        loaded_bytes: Bytes read from the shared storage (in-process only; else 0, and `l2_loaded` tells the traffic).
        failed_loads: Chunks that were found and not loaded, by reason.
        no_room: Chunks that did not fit into L1.
        dropped_events: Events that LMCache did not count; its counters are too low by them.
        in_process: Whether LMCache runs inside vLLM.
    """

    lookups: float = 0.0
    l1_stored: float = 0.0
    l2_sent: float = 0.0
    l2_stored: float = 0.0
    l2_unstored: float = 0.0
    l2_loaded: float = 0.0
    stored_bytes: float = 0.0
    loaded_bytes: float = 0.0
    failed_loads: dict[str, float] = field(default_factory=dict)
    no_room: float = 0.0
    dropped_events: float = 0.0
    in_process: bool = False

    @property
    def without_storage(self) -> str:
        """What to tell people, and where to look, if this LMCache gives nothing at all to the shared storage."""
        if not self.in_process:
            return "LMCache runs without its L2 adapter; look at --l2-adapter in run.json"
        return (
            "LMCache inside vLLM runs without its remote storage; look in vLLM's log for `remote_storage_plugins`, "
            "`missing adapter module_path` or `Failed to create remote backend` (LMCache before 0.4.4 has no plugin "
            "`fs`), and at the file that LMCACHE_CONFIG_FILE names"
        )


def transfers_of(grown: Counters) -> Transfers:
    """Return what an LMCache moved.

    Args:
        grown: Growth of the counters of an LMCache server, or of the vLLM that LMCache runs in.
    """
    in_process = any(key.startswith("lmcache:") for key in grown)
    return _inside(grown) if in_process else _beside(grown)


def stores_under_way(counters: Counters) -> float:
    """Return how many stores into the shared storage have not ended, or are not counted yet.

    Args:
        counters: Counters of an LMCache, not their growth.
    """
    begun, ended = (total(counters, f"{_L2}_store_{what}_requests_total") for what in ("submitted", "completed"))
    inside = total(counters, "lmcache:remote_put_task_num")
    stores = max(total(counters, "lmcache_mp_num_inflight_l2_stores"), inside, begun - ended)
    return max(stores, total(counters, "lmcache_mp_event_bus_queue_depth"))


def _beside(grown: Counters) -> Transfers:
    sent, stored = (total(grown, f"{_L2}_store_{what}_objects_chunks_total") for what in ("submitted", "completed"))
    begun, ended = (total(grown, f"{_L2}_store_{what}_requests_total") for what in ("submitted", "completed"))
    loads = by_label(grown, f"{_L2}_prefetch_failure_chunks_total", "reason")
    loads["read"] = total(grown, "lmcache_mp_l1_read_failure_chunks_total")
    return Transfers(
        lookups=total(grown, "lmcache_mp_lookups_requests_total"),
        l1_stored=total(grown, "lmcache_mp_l1_write_chunks_total"),
        l2_sent=sent,
        l2_stored=stored,
        # A failed request counts as completed and its chunks do not. While requests are under way the difference is
        # no proof, unless not one chunk arrived although requests ended.
        l2_unstored=max(0.0, sent - stored) if begun <= ended or (ended and not stored) else 0.0,
        l2_loaded=total(grown, f"{_L2}_prefetch_load_completed_chunks_total"),
        stored_bytes=max(0.0, total(grown, f"{_L2}_usage_bytes")),
        failed_loads={reason: count for reason, count in loads.items() if count > 0 and reason not in _HARMLESS},
        no_room=total(grown, "lmcache_mp_l1_allocation_failure_chunks_total"),
        dropped_events=total(grown, "lmcache_mp_event_bus_dropped_events_total"),
    )


def _inside(grown: Counters) -> Transfers:
    failed_puts = max(0.0, total(grown, "lmcache:put_failed_count"))
    failed_gets = max(0.0, total(grown, "lmcache:get_blocking_failed_count"))
    sent = total(grown, "lmcache:num_remote_write_requests_total")
    return Transfers(
        lookups=total(grown, "lmcache:num_lookup_requests_total"),
        l1_stored=total(grown, "lmcache:num_stored_tokens_total"),
        l2_sent=sent + failed_puts,
        l2_stored=sent,
        l2_unstored=failed_puts,
        l2_loaded=total(grown, "lmcache:num_remote_read_requests_total"),
        stored_bytes=total(grown, "lmcache:num_remote_write_bytes_total"),
        loaded_bytes=total(grown, "lmcache:num_remote_read_bytes_total"),
        failed_loads={"get": failed_gets} if failed_gets else {},
        no_room=total(grown, "lmcache:local_cpu_evict_failed_count_total"),
        in_process=True,
    )

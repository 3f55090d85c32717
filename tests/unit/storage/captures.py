"""Captured mounts as the doctor finds them; `python -m tests.unit.storage.captures` prints what it says of each."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.check import Finding
from pytest_kvcache.preflight import fs
from pytest_kvcache.storage import data_path, mountstats
from pytest_kvcache.storage.data_path import DataPath
from pytest_kvcache.storage.layouts import LayoutEvidence, judge
from pytest_kvcache.storage.mount_options import parse_options
from pytest_kvcache.storage.mounts import Mount
from pytest_kvcache.storage.mountstats import Reading
from pytest_kvcache.storage.rdma import Link
from pytest_kvcache.storage.requirement import LEVELS, Require, unmet

SAMPLES = Path(__file__).parents[1] / "data" / "pnfs"


@dataclass(frozen=True)
class Capture:
    """A captured mount.

    Args:
        name: Name of the capture.
        before: Its counters before the load; of a capture without them all that it counted is the load.
        after: Its counters after the load.
        server: Address of its server.
        link: The RDMA link after the load, None where it was not captured.
    """

    name: str
    before: Reading
    after: Reading
    server: str = ""
    link: Link | None = None

    @property
    def mount(self) -> Mount:
        """The mount, as mountinfo and mountstats together give it."""
        after = self.after
        return Mount(after.point, after.fstype, after.source, dict(after.options), after)

    @property
    def path(self) -> DataPath:
        """Which way its reads and writes took."""
        return data_path.between(self.before, self.after)

    def found(self, require: Require) -> tuple[str, Finding]:
        """Return the name of the check by which the doctor comes to its finding, and the finding.

        The link is taken to have carried all its packets in the load: no earlier reading of it was captured.
        """
        missing = unmet(require, self.mount)
        if missing is not None:
            return "mount", Finding("fail", *missing)
        if require not in {"pnfs", "pnfs-rdma"}:
            return "mount", Finding("pass", self.after.describe())
        links = [self.link] if self.link else []
        still = [Link(k.device, k.port, k.state, k.rate, k.layer, dict.fromkeys(k.counters, 0)) for k in links]
        kinds = {"rdma"} if self.after.is_rdma else {"tcp"}
        connections = tuple((kind, self.server) for kind in sorted(kinds))
        seen = LayoutEvidence(self.before, still, self.after, tuple(links), connections, self.server)
        return "layouts", judge(seen, require, fs.PROBE_BYTES)


def capture(name: str, samples: Path = SAMPLES) -> Capture | None:
    """Return a capture by its name, None for one without an NFS mount."""
    stem = samples / name
    after = _reading(stem.with_name(f"{name}.after.mountstats")) or _reading(stem.with_name(f"{name}.mountstats"))
    if after is None:
        return None
    before = _reading(stem.with_name(f"{name}.before.mountstats"))
    if before is None:
        kinds = tuple(type(t)(t.kind, (0,) * len(t.numbers)) for t in after.transports)
        before = Reading(after.source, after.point, after.fstype, after.options, layout=after.layout, transports=kinds)
    table = stem.with_name(f"{name}.mounts")
    options = table.read_text().splitlines()[-1].split()[3] if table.exists() else ""
    counters = stem.with_name(f"{name}.rxe-hw-counters")
    link = None
    if counters.exists():
        pairs = (line.split(":") for line in counters.read_text().splitlines())
        link = Link("rxe0", "1", "ACTIVE", "", "Ethernet", {key: int(value) for key, value in pairs})
    return Capture(name, before, after, parse_options(options).get("addr", ""), link)


def names(samples: Path = SAMPLES) -> list[str]:
    """Return the names of all captures in a folder."""
    endings = (".before", ".after")
    found = {path.name.removesuffix(".mountstats") for path in samples.glob("*.mountstats")}
    for ending in endings:
        found = {name.removesuffix(ending) for name in found}
    return sorted(found)


def table(samples: Path = SAMPLES) -> list[str]:
    """Return a line for each capture: what the doctor finds for each requirement, and what the counters say."""
    lines = [
        f"{'capture':26} {'nfs4.1':7} {'pnfs':7} {'pnfs-rdma':10} {'to the metadata server':23} finding of pnfs-rdma"
    ]
    for name in names(samples):
        found = capture(name, samples)
        if found is None:
            lines.append(f"{name:26} no NFS mount")
            continue
        by_level = {level: found.found(level) for level in LEVELS}
        path = found.path
        sent = f"{path.writes}/{path.reads}/{path.either} {path.bytes / 1e6:.1f} MB"
        short = [by_level[level][1].status for level in LEVELS[1:]]
        check, finding = by_level["pnfs-rdma"]
        lines.append(f"{name:26} {short[0]:7} {short[1]:7} {short[2]:10} {sent:23} {check}: {finding.found}")
    return lines


def _reading(path: Path) -> Reading | None:
    mounts = mountstats.parse(path.read_text()) if path.exists() else []
    return mounts[0] if mounts else None


if __name__ == "__main__":
    sys.stdout.write("\n".join(table(*map(Path, sys.argv[1:]))) + "\n")

"""What file system a folder is on, from the kernel's own tables (proc(5), nfs's mountstats)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvcache.storage import mountstats
from pytest_kvcache.storage.mountstats import Reading, nfs_version, parse_options, unescape

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Mount:
    """One mounted file system.

    Args:
        point: Folder that it is mounted on.
        fstype: As the kernel names it (`ext4`, `nfs4`).
        source: Device or `server:/export`.
        options: Mount options, `vers=` and `proto=` among them for NFS.
        nfs: The mount's own counters and properties, None where it is not NFS.
    """

    point: Path
    fstype: str
    source: str
    options: dict[str, str]
    nfs: Reading | None = field(default=None, compare=False)

    @property
    def is_nfs(self) -> bool:
        """Whether the file system is NFS of any version."""
        return self.fstype in {"nfs", "nfs4"}

    @property
    def pnfs(self) -> str:
        """Layout driver that was negotiated (`LAYOUT_FLEX_FILES`), "" for none."""
        return self.nfs.layout if self.nfs else ""

    @property
    def version(self) -> tuple[int, int]:
        """NFS version, (4, 2) for instance; (0, 0) for what is not NFS."""
        return nfs_version(self.options) if self.is_nfs else (0, 0)

    def describe(self) -> str:
        """Return a few words for a label: `ext4`, or `nfs v4.2 over tcp, no pNFS`."""
        if not self.is_nfs:
            return self.fstype
        layout = self.pnfs or "no pNFS"
        return f"nfs v{self.options.get('vers', '?')} over {self.options.get('proto', '?')}, {layout}"


def mount_of(path: Path, *, proc: Path | None = None) -> Mount:
    """Return the mount that holds `path` (or its nearest existing parent).

    Args:
        path: A path, which need not exist yet.
        proc: Folder with `mountinfo` and `mountstats`; by default this process's.
    """
    proc = proc or PROC
    real = path.resolve()
    best: Mount | None = None
    for line in (proc / "mountinfo").read_text(encoding="utf-8").splitlines():
        mount = _parse_mountinfo(line)
        # A later line of equal depth is mounted over the earlier one.
        if real.is_relative_to(mount.point) and (best is None or len(mount.point.parts) >= len(best.point.parts)):
            best = mount
    if best is None:
        raise FileNotFoundError(f"no mount holds {path}")
    if best.is_nfs and (proc / "mountstats").exists():
        stats = mountstats.at((proc / "mountstats").read_text(encoding="utf-8"), best.point)
        return Mount(best.point, best.fstype, best.source, best.options, stats)
    return best


def _parse_mountinfo(line: str) -> Mount:
    """Parse one line of /proc/PID/mountinfo (proc(5), section 3.5 of the kernel's filesystems/proc)."""
    head, _, tail = line.partition(" - ")
    point = unescape(head.split()[4])
    fstype, source, options, *_ = [*tail.split(), "", ""]
    return Mount(Path(point), fstype, unescape(source), parse_options(options))

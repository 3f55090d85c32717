"""What file system a folder is on, from the kernel's own tables (proc(5), nfs's mountstats)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One mounted file system.

    Args:
        point: Where it is mounted.
        fstype: As the kernel names it (`ext4`, `nfs4`).
        source: Device or `server:/export`.
        options: Mount options, `vers=` and `proto=` among them for NFS.
        pnfs: Layout driver in use (`LAYOUT_FLEX_FILES`), or "" where there is none or the mount is not NFSv4.1+.
    """

    point: Path
    fstype: str
    source: str
    options: dict[str, str]
    pnfs: str = ""

    @property
    def is_nfs(self) -> bool:
        """Whether the file system is NFS of any version."""
        return self.fstype in {"nfs", "nfs4"}

    @property
    def is_pnfs_rdma(self) -> bool:
        """Whether layouts are negotiated and the mount itself runs over RDMA."""
        return self.fstype == "nfs4" and bool(self.pnfs) and self.options.get("proto") == "rdma"

    def describe(self) -> str:
        """Return a few words for a label: `ext4`, or `nfs4.2 over tcp, no pNFS`."""
        if not self.is_nfs:
            return self.fstype
        layout = self.pnfs or "no pNFS"
        return f"nfs v{self.options.get('vers', '?')} over {self.options.get('proto', '?')}, {layout}"


def mount_of(path: Path, *, proc: Path = Path("/proc/self")) -> Mount:
    """Return the mount that holds `path` (or its nearest existing parent).

    Args:
        path: Need not exist yet.
        proc: Folder with `mountinfo` and `mountstats`.
    """
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
        stats = (proc / "mountstats").read_text(encoding="utf-8")
        return Mount(best.point, best.fstype, best.source, best.options, layout_driver(stats, best.point))
    return best


def layout_driver(mountstats: str, point: Path) -> str:
    """Return the pNFS layout driver of the mount at `point`, "" where none is negotiated."""
    block = ""
    for part in mountstats.split("\ndevice "):
        if f" mounted on {point} with fstype " in part.splitlines()[0]:
            block = part
    found = re.search(r"^\tnfsv4:.*?\bpnfs=(?:(not configured)|([^,\n]+))", block, re.MULTILINE)
    return (found.group(2) or "").strip() if found else ""


def _parse_mountinfo(line: str) -> Mount:
    """Parse one line of /proc/PID/mountinfo (proc(5), section 3.5 of the kernel's filesystems/proc)."""
    head, _, tail = line.partition(" - ")
    point = _unescape(head.split()[4])
    fstype, source, options, *_ = [*tail.split(), "", ""]
    pairs = (item.partition("=") for item in options.split(","))
    return Mount(Path(point), fstype, _unescape(source), {k: v for k, _, v in pairs})


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda m: chr(int(m.group(1), 8)), text)

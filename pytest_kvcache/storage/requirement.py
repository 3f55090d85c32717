"""What a tier may require of the mount that its folder is on, and what is missing where a requirement is not met."""

from __future__ import annotations

from typing import Literal

from pytest_kvcache.storage.mounts import Mount

Require = Literal["none", "nfs4.1", "pnfs", "pnfs-rdma"]

LEVELS: tuple[Require, ...] = ("none", "nfs4.1", "pnfs", "pnfs-rdma")
#: Layouts whose data goes to block devices, by another way than the mount's transport.
BLOCK_LAYOUTS = frozenset({"LAYOUT_BLOCK_VOLUME", "LAYOUT_SCSI"})


def unmet(require: Require, mount: Mount) -> tuple[str, str] | None:
    """Return what was found in place of what is required, and what to do; None where the mount has the properties.

    That a layout is negotiated does not mean that it is used: the preflight tests the use by a write and a read
    (`preflight/fs.py`).
    """
    found = f"{mount.describe()} at {mount.point}"
    if require != "none" and mount.hides and not mount.is_nfs:
        return f"{found}: it hides the mount of {mount.hides}", f"umount {mount.point}, and find out who mounts there"
    for level, missing, what, todo in (
        (1, not mount.is_nfs, "nothing of NFS is mounted there", "mount the export (/etc/fstab, the automounter)"),
        (1, mount.version < (4, 1), "older than NFSv4.1", "mount with -o vers=4.2"),
        (
            2,
            not mount.pnfs,
            "client and server have agreed on no pNFS layout",
            "let the server offer layouts (the export option pnfs of Linux), and load the client's layout module "
            "(modprobe nfs_layout_flexfiles or nfs_layout_nfsv41_files) before mounting",
        ),
        (
            3,
            not mount.is_rdma,
            "not over RDMA",
            "mount with -o proto=rdma,port=20049, and check the RDMA link (rdma link)",
        ),
        (
            3,
            mount.pnfs in BLOCK_LAYOUTS,
            "with this layout data goes to block devices and not over the mount's transport",
            'set require = "pnfs" if that is meant, else let the server offer flexfiles or files layouts',
        ),
    ):
        if level <= LEVELS.index(require) and missing:
            return f"{found}: {what}", todo
    return None

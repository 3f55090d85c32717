"""What may serve reads of a file system without its storage, by the name that the kernel has for its type.

Only file systems of a local disk are said to be local. A type that is not known here may be of a network.
"""

from __future__ import annotations

_PAGES = "reads may come from this client's page cache"
_FUSE = "reads may come from the page cache, or from caches of the program that serves it"

_LOCAL = frozenset({
    "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "hfsplus", "iso9660", "jfs",
    "minix", "msdos", "nilfs2", "ntfs", "ntfs3", "reiserfs", "squashfs", "udf", "vfat", "xfs", "fuseblk",
})  # fmt: skip

#: By type; what comes after the type's name in a sentence.
_KNOWN = {
    "lustre": f"a network file system: {_PAGES}, which the locks of its servers keep valid",
    "wekafs": f"a network file system: {_PAGES}, unless it is mounted with forcedirect",
    "gpfs": "a network file system: reads may come from this client's own cache (pagepool), beside the page cache",
    "beegfs": "a network file system: reads may come from this client's cache (tuneFileCacheType in "
    "beegfs-client.conf: buffered, or native for the page cache)",
    "ceph": f"a network file system: {_PAGES}, while the servers grant it the right to cache",
    "cifs": f"a network file system: {_PAGES}, while a lease is granted (cache=strict), or for longer (cache=loose)",
    "9p": "files of another host: reads may come from that host's RAM, and from this machine's page cache (cache=)",
    "virtiofs": "files of the host: reads may come from that host's RAM, and from this machine's page cache",
    "overlay": "reads may come from the page cache of the file systems below it",
    "zfs": "reads may come from its own cache (ARC), which is not the page cache",
    "tmpfs": "it is the machine's memory",
    "autofs": "nothing is mounted there yet",
    "fuse.ceph": f"a network file system: {_FUSE} (client_oc_size), while the servers grant it the right to cache",
    "fuse.glusterfs": f"a network file system: {_FUSE} (performance.cache-size)",
    "fuse.juicefs": f"a network file system: {_FUSE} (its folder of cached blocks on the local disk)",
    "fuse.sshfs": f"a network file system: {_FUSE} (dcache_timeout, kernel_cache)",
}
_ALIASES = {
    "smb3": "cifs", "smbfs": "cifs", "mmfs": "gpfs", "weka": "wekafs", "ramfs": "tmpfs", "fuse.ceph-fuse": "fuse.ceph",
    "fuse.overlayfs": "overlay", "fuse.fuse-overlayfs": "overlay", "zfs_fuse": "zfs",
}  # fmt: skip
#: Network and cluster file systems of which no more is said than that they are.
_NETWORK = frozenset({
    "acfs", "afs", "coda", "cvfs", "daos", "exafs", "gfs", "gfs2", "glusterfs", "lizardfs", "moosefs",
    "ncpfs", "nfsd", "ocfs2", "orangefs", "panfs", "pvfs2", "quobyte", "scoutfs", "vboxsf", "vmhgfs",
    "prl_fs", "hostfs", "drvfs", "xtreemfs",
})  # fmt: skip


def of(fstype: str) -> str:
    """Return what may serve reads of a file system without its storage, in words that may follow the type's name.

    Args:
        fstype: As the kernel names the type (`ext4`, `lustre`, `fuse.ceph-fuse`).
    """
    name = _ALIASES.get(fstype, fstype)
    if name in _KNOWN:
        return _KNOWN[name]
    if name in _LOCAL:
        return "reads may come from the page cache, as on any local file system"
    if name in _NETWORK:
        return f"a network file system: {_PAGES}"
    if name.partition(".")[0] == "fuse":
        return _FUSE
    return f"a type that is not known here, of a disk or a network: {_PAGES}"

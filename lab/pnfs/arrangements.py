"""Wrong mounts: how each is arranged in the guest, and the reason that the product has to give for it.

A reason is a regular expression that has to be found in what the product says of its own arrangement, and in what it
says of no other one.
"""

from __future__ import annotations

from dataclasses import dataclass

from lab.pnfs.settings import DATA_SERVER

_MOUNT = "/mnt/kv"
_MOUNTED = f'mount_at {_MOUNT} "$(mount_options)"'


@dataclass(frozen=True)
class Arrangement:
    """A mount that a tier with `require = "pnfs-rdma"` must not be measured on.

    Args:
        name: Its name.
        what: What is wrong, for people.
        reason: What the product has to say, as a regular expression.
        prepare: Script that arranges it; the lab's own mounts are gone when it begins.
        midway: Script that runs in the middle of the window; "" where it is wrong from the beginning.
        folder: Folder of the guest that the tier is on.
    """

    name: str
    what: str
    reason: str
    prepare: str = _MOUNTED
    midway: str = ""
    folder: str = _MOUNT


def _unreachable(address: str) -> str:
    return f"ip route replace unreachable {address} table 101; ip addr del {address}/24 dev $LAB_SERVER_DEVICE"


#: An address of the storage's network that nobody has.
_NOBODY = "192.168.77.99"
#: Layouts whose data server is the server's second address, and which allow I/O through the metadata server.
_OWN_DATA_SERVER = f"server_setting ff_fallback Y; server_setting ff_server {DATA_SERVER}"
_QUICK = (
    "echo 20 > /sys/module/nfs_layout_flexfiles/parameters/dataserver_timeo; "
    "echo 1 > /sys/module/nfs_layout_flexfiles/parameters/dataserver_retrans"
)

#: The lab's own mount, with which nothing is wrong.
CONTROL = Arrangement("control", "nothing", "")

ALL = (
    Arrangement(
        "plain-rdma",
        "NFS over RDMA, without pNFS",
        r"v4\.2 over rdma, no pNFS at /mnt/kv: client and server have agreed on no pNFS layout",
        f"exports plain; {_MOUNTED}",
    ),
    Arrangement(
        "pnfs-tcp",
        "pNFS over TCP",
        r"v4\.2 over tcp, LAYOUT_FLEX_FILES at /mnt/kv: not over RDMA",
        f"mount_at {_MOUNT} vers=4.2,proto=tcp,port=2049",
    ),
    Arrangement(
        "data-server-tcp",
        "metadata server over RDMA, data server over TCP",
        r"data servers over TCP",
        f"server_setting ff_netid tcp; {_MOUNTED}",
    ),
    Arrangement(
        "nfsv3",
        "NFSv3 over RDMA",
        r"older than NFSv4\.1",
        f"mount_at {_MOUNT} vers=3,proto=rdma,port=$LAB_RDMA_PORT,nolock /export/kv",
    ),
    Arrangement(
        "refused",
        "layouts are negotiated, and refused when asked for",
        r"0 writes and 0 reads by the layout: all through the metadata server .*LAYOUTGET gave no layout",
        f"{_MOUNTED}; exports plain",
    ),
    Arrangement(
        "unreachable",
        "layouts are granted whose data server cannot be reached",
        r"a write of 4 MiB got no answer within .*the server names cannot be reached",
        f"{_QUICK}; server_setting ff_fallback Y; server_setting ff_server {_NOBODY}; {_MOUNTED}",
    ),
    Arrangement(
        "refusing",
        "layouts are granted whose data server refuses the data",
        r"a write of 4 MiB got no answer within .*the server names refuse what they are sent",
        f"server_setting ff_fallback Y; server_setting ff_uid 4242; {_MOUNTED}",
    ),
    Arrangement(
        "resent",
        "layouts are granted, the data server refuses the data, and all of it is sent to the metadata server",
        r"[1-9]\d* writes and \d+ reads by the layout: .*went through the metadata server, .*WRITEs and READs failed",
        f"server_setting ff_fallback Y; server_setting ff_uid 4242; {_MOUNTED}; turns_of_exports",
    ),
    Arrangement(
        "data-server-stops",
        "a data server stops in the middle of the window",
        r"a data server failed during the load",
        f"{_QUICK}; {_OWN_DATA_SERVER}; {_MOUNTED}",
        _unreachable(DATA_SERVER),
    ),
    Arrangement(
        "full",
        "the export is full",
        r"cannot be written: .*No space left on device",
        f"mount -o remount,size=2m /export; {_MOUNTED}",
    ),
    Arrangement(
        "fills-up",
        "the export is full from the middle of the window on",
        r"the storage is full",
        f"mount -o remount,size=100m /export; {_MOUNTED}",
        "dd if=/dev/zero of=/export/other bs=1M count=100",
    ),
    Arrangement(
        "mounted-anew",
        "unmounted in the middle of the window, and mounted with other options",
        r"was mounted anew with other options .*proto rdma -> tcp",
        midway=f"umount {_MOUNT} && mount_at {_MOUNT} vers=4.2,proto=tcp,port=2049",
    ),
    Arrangement(
        "remounted",
        "remounted in place in the middle of the window, with other options",
        r"changed during the load: .*\bsync\b",
        midway=f"mount -o remount,sync {_MOUNT}",
    ),
    Arrangement(
        "automount",
        "an automounter ends the idle mount in the middle of the window",
        r"an automounter .* ended it while it was idle",
        'automount_at /auto kv "$(mount_options)" 1',
        "sleep 6",
        "/auto/kv",
    ),
    Arrangement(
        "hidden",
        "another file system lies over the mount",
        r"tmpfs at /mnt/kv: it hides the mount of 192\.168\.77\.1:/kv",
        f"{_MOUNTED}; mount -t tmpfs tmpfs {_MOUNT}",
    ),
    Arrangement(
        "gets-hidden",
        "another file system is mounted over it in the middle of the window",
        r"tmpfs at /mnt/kv hides the mount of 192\.168\.77\.1:/kv",
        midway=f"mount -t tmpfs tmpfs {_MOUNT}",
    ),
)

#: Takes away whatever an arrangement did.
RESET = (
    "umount -l /auto/kv /auto 2>/dev/null || true; pkill -KILL automount || true; umount -l /auto 2>/dev/null || true; "
    f"while umount -l {_MOUNT} 2>/dev/null; do :; done; unmount_all; "
    "server_setting ff_netid; server_setting ff_server; server_setting ff_fallback N; server_setting ff_uid -1; "
    "no_turns_of_exports; rm -rf /export/other /export/kv/*; "
    "mount -o remount,size=${LAB_EXPORT_MIB}m /export; exports pnfs; "
    "ip addr replace $LAB_DATA_SERVER/24 dev $LAB_SERVER_DEVICE; "
    "ip route replace $LAB_DATA_SERVER dev $LAB_CLIENT_DEVICE src $LAB_CLIENT table 101"
)

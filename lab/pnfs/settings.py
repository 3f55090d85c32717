"""What a lab is to be like, and the names and addresses that are the same in every lab."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

#: The wire between namespace and guest. Every lab has a namespace of its own, so that all may use the same addresses.
HOST_ADDRESS, GUEST_ADDRESS, WIRE_BITS = "10.77.0.1", "10.77.0.2", 30
TAP = "tap0"
#: The storage network within the guest: the server's two addresses on one end of a pair of devices, the client's on the
#: other. The second address of the server is that of a data server which can be stopped while the first one goes on.
SERVER, DATA_SERVER, CLIENT = "192.168.77.1", "192.168.77.3", "192.168.77.2"
SERVER_DEVICE, CLIENT_DEVICE = "san0", "san1"
#: Port of NFS over RDMA (IANA: nfsrdma).
RDMA_PORT = 20049

Storage = Literal["pnfs", "plain", "none"]


class LabSettings(BaseModel):
    """What a lab is to be like.

    Attributes:
        storage: `pnfs` exports with flexfiles layouts, `plain` without layouts, `none` starts no server at all.
        proto: Transport of the mounts.
        mounts: Where the export is mounted. From the second on each has a superblock, page cache and counters of its
            own (`nosharecache`).
        memory_mib: Memory of the guest (MiB), the export's content included.
        export_mib: Size of the export (MiB), which is in the guest's memory.
        read_only: Folders of the host that the guest sees at the same path, and cannot write.
        read_write: Folders of the host that the guest sees at the same path, and can write.
        max_map_count: The host's vm.max_map_count while the lab is up; 0 leaves it as it is. Each mapping of a
            process of the guest is one of a process of the host: vLLM within the guest takes more than 65,530.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    storage: Storage = "pnfs"
    proto: Literal["rdma", "tcp"] = "rdma"
    mounts: tuple[str, ...] = ("/mnt/kv", "/mnt/kv2")
    memory_mib: int = Field(default=4096, ge=512)
    export_mib: int = Field(default=1500, ge=16)
    read_only: tuple[str, ...] = ()
    read_write: tuple[str, ...] = ()
    max_map_count: int = Field(default=0, ge=0)

    def environment(self) -> dict[str, str]:
        """Return what the guest's init script reads."""
        return {
            "LAB_STORAGE": self.storage,
            "LAB_PROTO": self.proto,
            "LAB_MOUNTS": " ".join(self.mounts),
            "LAB_EXPORT_MIB": str(self.export_mib),
            "LAB_ADDRESS": f"{GUEST_ADDRESS}/{WIRE_BITS}",
            "LAB_SERVER": SERVER,
            "LAB_DATA_SERVER": DATA_SERVER,
            "LAB_CLIENT": CLIENT,
            "LAB_SERVER_DEVICE": SERVER_DEVICE,
            "LAB_CLIENT_DEVICE": CLIENT_DEVICE,
            "LAB_RDMA_PORT": str(RDMA_PORT),
        }

"""`kind = "fs"`: LMCache keeps KV in CPU RAM and in a folder that both servers share, pNFS over RDMA at best."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pytest_kvcache.serving.offload import Offload, TierPlan
from pytest_kvcache.tiers.base import TierContext, TierModel
from pytest_kvcache.tiers.mounts import Mount, mount_of


class FsTier(TierModel):
    """CPU RAM and a shared folder.

    Every run works in a fresh folder of its own below `path`, so that it starts cold, and removes it.
    """

    kind: Literal["fs"]
    path: Path | None = Field(default=None, description="folder on the mount")
    expect: Literal["any", "pnfs"] = Field(
        default="any", description='"pnfs": the label says so wherever the folder is not on pNFS over RDMA'
    )
    stand_in: Literal["never", "cpu-profiles", "always"] = Field(
        default="cpu-profiles",
        description="when a local folder may stand in for a path that is not there",
    )

    def label(self, ctx: TierContext) -> str:
        """The name, and what it really is where that is not what the name says."""
        mount = self._mount(ctx)
        if self._stands_in(ctx) or (self.expect == "pnfs" and not mount.is_nfs):
            return f"{self.name} (stand-in: {mount.describe()})"
        if self.expect == "pnfs" and not mount.is_pnfs_rdma:
            return f"{self.name} ({mount.describe()})"
        return self.name

    def unavailable(self, ctx: TierContext) -> str | None:
        """The folder must be there, or a stand-in be allowed."""
        if self._is_there() or self._stands_in(ctx):
            return None
        where = f"{self.path} is not a folder" if self.path else "no path is set"
        return f"{where}; mount the file system, or set tiers.{self.name}.path in kvcache.toml"

    def plan(self, ctx: TierContext) -> TierPlan:
        """LMCache with L1 and a file system L2, each server on the same fresh folder."""
        folder = self._root(ctx) / f"kvcache-{ctx.run_id}-{self.name}"
        mount = self._mount(ctx)
        return TierPlan(
            label=self.label(ctx),
            offload=Offload(
                l2_adapter={"type": "fs", "base_path": str(folder)},
                engine_config={
                    "remote_storage_plugins": ["fs"],
                    "extra_config": {"remote_storage_plugin.fs.base_path": str(folder)},
                },
            ),
            folders=(folder,),
            facts={"storage": "fs", "mount": mount.describe(), "stand_in": str(self._stands_in(ctx)).lower()},
        )

    def _is_there(self) -> bool:
        return self.path is not None and self.path.is_dir()

    def _stands_in(self, ctx: TierContext) -> bool:
        if self._is_there():
            return False
        return self.stand_in == "always" or (self.stand_in == "cpu-profiles" and ctx.profile.gpus_per_server == 0)

    def _root(self, ctx: TierContext) -> Path:
        return ctx.storage_home if self._stands_in(ctx) or self.path is None else self.path

    def _mount(self, ctx: TierContext) -> Mount:
        return mount_of(self._root(ctx))

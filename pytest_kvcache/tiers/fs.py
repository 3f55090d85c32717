"""`kind = "fs"`: LMCache keeps KV in CPU RAM and in a folder that all servers share, at best on pNFS over RDMA."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pytest_kvcache.check import Check
from pytest_kvcache.preflight import fs as checks_of_fs
from pytest_kvcache.preflight.kvsize import stored
from pytest_kvcache.serving.offload import Offload, PerServer, TierPlan
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.storage.folder import UNFINISHED, FolderAccount
from pytest_kvcache.storage.mounts import Mount, mount_of
from pytest_kvcache.storage.opened import is_folder
from pytest_kvcache.storage.requirement import Require, unmet
from pytest_kvcache.strict import UserPath
from pytest_kvcache.tiers.base import TierModel

#: Folder of each server, below the folder of the objects, for files that are not complete objects yet. Without it,
#: servers that store the same chunk at the same time write one file `….tmp`, and the second to finish finds it gone: of
#: 120 simultaneous puts of LMCache 0.5.6, 41 and 50 (inside vLLM) and 36 and 8 (as a server) failed; with it none did.
#: LMCache has the setting from 0.3.9 inside vLLM and from 0.4.2 as a server, so in every version that has these tiers.
OWN_TMP = PerServer(UNFINISHED)


class FsTier(TierModel):
    """The tier with CPU RAM and a shared folder.

    Every run works in a fresh folder of its own below `path`, so that it starts cold, and removes the folder.
    """

    kind: Literal["fs"]
    path: UserPath | None = Field(default=None, description="folder on the mount")
    require: Require = Field(
        default="none",
        description="what the folder must be on, wherever it is not a stand-in; else the tier cannot run",
    )
    stand_in: Literal["never", "cpu-profiles", "always"] = Field(
        default="cpu-profiles",
        description="when a local folder may stand in for a path that is not there",
    )

    def label(self, ctx: TierContext) -> str:
        """Return the name, with the real storage where that is a stand-in or not what `require` asks for."""
        if self._stands_in(ctx):
            return f"{self.name} (stand-in: {self._mount(ctx).describe()})"
        try:
            if self._is_there() and unmet(self.require, self._mount(ctx)):
                return f"{self.name} ({self._mount(ctx).describe()})"
        except OSError as error:
            return f"{self.name} ({error.strerror or error})"
        return self.name

    def unavailable(self, ctx: TierContext) -> str | None:
        """Return why the tier cannot run: no folder and no stand-in, or a folder on something other than required."""
        if self._stands_in(ctx):
            return None
        if not self._is_there():
            where = f"{self.path} is not a folder" if self.path else "no path is set"
            return f"{where}; mount the file system, or set tiers.{self.name}.path in kvcache.toml"
        try:
            missing = unmet(self.require, self._mount(ctx))
        except OSError as error:
            return f"{self.path} cannot be opened: {error.strerror or error}; is the server of the mount alive?"
        if missing is None:
            return None
        found, todo = missing
        return f'{self.path} is not on what require = "{self.require}" asks for, but on {found}; {todo}'

    def checks(self, ctx: TierContext) -> list[Check]:
        """Return the checks before a boot."""
        root = self._root(ctx)
        require: Require = "none" if self._stands_in(ctx) else self.require
        return [
            Check("mount", lambda: checks_of_fs.mount(root, require, stand_in=self._stands_in(ctx))),
            Check("writable", lambda: checks_of_fs.writable(root), blocking=True),
            Check("layouts", lambda: checks_of_fs.layouts_used(root, require), blocking=True),
            Check("page cache", lambda: checks_of_fs.page_cache(root)),
            Check("space", lambda: checks_of_fs.space(root, stored(ctx.profile)), blocking=True),
            Check("other runs", lambda: checks_of_fs.other_runs(root)),
        ]

    def plan(self, ctx: TierContext) -> TierPlan:
        """Return a plan with L1 and a file system as L2: all servers use one fresh folder."""
        folder = self._root(ctx) / f"kvcache-{ctx.run_id}-{self.name}"
        mount = self._mount(ctx)
        return TierPlan(
            label=self.label(ctx),
            offload=Offload(
                l2_adapter={"type": "fs", "base_path": str(folder), "relative_tmp_dir": OWN_TMP},
                engine_config={
                    "remote_storage_plugins": ["fs"],
                    "extra_config": {"remote_storage_plugin.fs.base_path": str(folder)},
                },
                engine_extra={"fs_connector_relative_tmp_dir": OWN_TMP},
            ),
            folders=(folder,),
            facts={"storage": "fs", "mount": mount.describe(), "stand_in": str(self._stands_in(ctx)).lower()},
            storage_account=FolderAccount(folder, "none" if self._stands_in(ctx) else self.require),
        )

    def _is_there(self) -> bool:
        """Return whether the folder is there, mounted where that is done on demand.

        One that gives no answer, or an error, is there: nothing may stand in for a mount whose server is dead.
        """
        try:
            return self.path is not None and is_folder(self.path)
        except OSError:
            return True

    def _stands_in(self, ctx: TierContext) -> bool:
        if self._is_there():
            return False
        return self.stand_in == "always" or (self.stand_in == "cpu-profiles" and ctx.profile.gpus_per_server == 0)

    def _root(self, ctx: TierContext) -> Path:
        return ctx.storage_home if self._stands_in(ctx) or self.path is None else self.path

    def _mount(self, ctx: TierContext) -> Mount:
        return mount_of(self._root(ctx))

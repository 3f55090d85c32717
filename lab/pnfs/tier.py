"""The tier of the lab: LMCache servers in the guest, each on a mount of its own of the one export.

It is a table of a `kvcache.toml` (`lab/kvcache.toml`): `kind = "lab.pnfs.tier:PnfsLabTier"`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pydantic import Field

from lab.pnfs import network, of_guest
from lab.pnfs.lab import Lab
from lab.pnfs.settings import GUEST_ADDRESS, LabSettings
from pytest_kvcache.check import Check
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.errors import KvCacheError, SetupError
from pytest_kvcache.preflight.kvsize import stored
from pytest_kvcache.serving.offload import Offload, PerServer, TierPlan
from pytest_kvcache.serving.places import Place, Placement
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.storage.requirement import Require
from pytest_kvcache.tiers.base import TierModel
from pytest_kvcache.tiers.fs import OWN_TMP

#: Behind the tier's name in every output.
SHORT_LABEL = "soft-RoCE, one kernel: correctness, not performance"
#: Name of the place where LMCache runs.
GUEST = "guest"
LAUNCHER = "lab.pnfs.launcher:LabLauncher"


@dataclass(frozen=True)
class OwnMount(PerServer):
    """A folder that each server reaches by a mount of its own.

    Args:
        prefix: Name of the folder, below the mounts.
        mounts: Where the export is mounted, in the order of the servers.
    """

    mounts: tuple[str, ...] = ()

    def of(self, index: int) -> str:
        """Return the folder of the `index`-th server."""
        return f"{self.mounts[index]}/{self.prefix}"


class PnfsLabTier(TierModel):
    """The tier with CPU RAM and a pNFS mount over soft-RoCE, both in the guest of a lab.

    The session runs in the lab's network namespace (`python -m lab.pnfs.perf`, `python -m lab.pnfs enter`).
    """

    launcher: str | None = Field(default=LAUNCHER, description="places LMCache in the guest")
    require: Require = Field(
        default="pnfs-rdma", description="what the guest's mounts must be; else the tier cannot run"
    )

    o_direct: bool = Field(default=False, description="whether LMCache reads and writes past the guest's page cache")

    def label(self, ctx: TierContext) -> str:  # noqa: ARG002 - part of the protocol
        """Return the name, with what no figure of the lab says."""
        return f"{self.name} ({SHORT_LABEL})"

    def unavailable(self, ctx: TierContext) -> str | None:
        """Return why the tier cannot run: no lab, a session outside of its namespace, another mount."""
        try:
            lab = attached()
            if ctx.profile.servers > len(lab.mounts):
                return f"{ctx.profile.servers} servers need a mount each, and the lab has {', '.join(lab.mounts)}"
            for row in _mounts(lab, self.require):
                if row["unmet"]:
                    wanted = f'require = "{self.require}"'
                    return f"{row['folder']} is not what {wanted} asks for: {row['unmet']}; {row['todo']}"
        except KvCacheError as error:
            return " ".join(str(error).split())
        return None

    def checks(self, ctx: TierContext) -> list[Check]:
        """Return the checks before a boot, which are carried out in the guest, on each mount."""
        lab = attached()
        return of_guest.checks(lab, lab.mounts[: ctx.profile.servers], self.require, stored(ctx.profile))

    def plan(self, ctx: TierContext) -> TierPlan:
        """Return a plan with L1 and a fresh folder of the export as L2; the launcher makes the folder."""
        lab = attached() if self.unavailable(ctx) is None else None
        settings = lab.settings if lab else LabSettings()  # to be shown, where it cannot run
        mounts = settings.mounts[: ctx.profile.servers]
        own = OwnMount(f"kvcache-{ctx.run_id}-{self.name}", mounts)
        found = sorted({row["mount"] for row in _mounts(lab, self.require)}) if lab else ["unknown"]
        folders = tuple(map(own.of, range(len(mounts))))
        return TierPlan(
            label=self.label(ctx),
            offload=Offload(
                l2_adapter={
                    "type": "fs",
                    "base_path": own,
                    "relative_tmp_dir": OWN_TMP,
                    **({"use_odirect": True} if self.o_direct else {}),
                },
                engine_config={
                    "remote_storage_plugins": ["fs"],
                    "extra_config": {"remote_storage_plugin.fs.base_path": own},
                },
                engine_extra={"fs_connector_relative_tmp_dir": OWN_TMP},
            ),
            facts={
                "storage": "fs",
                "mount": ", ".join(found),
                "lab": f"{SHORT_LABEL}; a mount for each server, {settings.memory_mib} MiB of guest",
                "o_direct": str(self.o_direct).lower(),
                "stand_in": "true",
            },
            storage_account=of_guest.GuestAccount(lab, folders, self.require) if lab else None,
        )

    def placement(self, here: Place, profile: Profile) -> Placement:
        """Return where each part of a pair runs: LMCache in the guest, vLLM and the balancer in the namespace."""
        return placement(here, profile)


def attached() -> Lab:
    """Return the lab in whose network namespace this process runs.

    Raises:
        SetupError: There is none.
    """
    lab = Lab.attach()
    if not network.is_inside(lab.namespace):
        raise SetupError(
            f"this session is outside of the lab's network namespace {lab.namespace}, and cannot reach the guest",
            where=f"lab {lab.id}",
            todo="python -m lab.pnfs.perf, or put `python -m lab.pnfs enter` before the command",
        )
    return lab


def placement(here: Place, profile: Profile) -> Placement:
    """Return where each part of a pair runs: an LMCache inside vLLM takes its vLLM into the guest with it.

    Args:
        here: The host, in the lab's network namespace.
        profile: Profile with the number of servers, and where LMCache is.
    """
    guest = replace(here, scratch=guest_scratch(here.scratch), host=GUEST_ADDRESS, name=GUEST)
    each = profile.servers
    server = guest if profile.lmcache_mode == "in-process" else here
    return Placement(servers=(server,) * each, caches=(guest,) * each, balancer=here, gpus=((),) * each)


def guest_scratch(scratch: Path) -> Path:
    """Return the guest's own folder of a run; it writes to no folder of the host but that of the results."""
    return Path("/tmp") / scratch.name  # noqa: S108 - of the guest


def _mounts(lab: Lab, require: Require) -> list[dict[str, str]]:
    return _asked(lab.id, lab.mounts, require)


@cache
def _asked(lab: str, mounts: tuple[str, ...], require: Require) -> list[dict[str, str]]:
    """Return what the mounts are, asked once in a session: the answer takes the guest seconds."""
    found: list[dict[str, str]] = of_guest.ask(Lab.attach(lab), "mounts", mounts, require=require)
    return found

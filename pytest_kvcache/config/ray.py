"""`[profiles.NAME.ray]`: the cluster on which the launcher `ray` boots servers, and what each needs of its node."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator

from pytest_kvcache.strict import Strict

#: Resources that have keys of their own.
_OWN = {"CPU": "cpus_per_server", "GPU": "gpus_per_server of the profile", "memory": "l1_size_gb of the profile"}


class RaySettings(Strict):
    """Where servers are placed."""

    address: str = Field(
        default="",
        description='address of a cluster (`HOST:6379`, or `auto` for that of this machine); "" makes one of this '
        "machine for each boot",
    )
    strategy: Literal["spread", "pack"] | None = Field(
        default=None,
        description="`spread`: each server on a node of its own; `pack`: all on one; by default `spread`, and `pack` "
        "where no address is given",
    )
    resources: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="custom resources that the node of a server must have, as `pnfs = 1` for nodes with the mount",
    )
    cpus_per_server: PositiveFloat = Field(default=1, description="processors that the cluster sets aside for a server")
    load_nodes: NonNegativeInt = Field(
        default=0,
        description="so many nodes send the load, placed as the servers are; 0: the machine of pytest sends it",
    )
    cpus_per_load_node: PositiveFloat = Field(
        default=1, description="processors that the cluster sets aside for the load processes of a load node"
    )
    engine: str = Field(
        default="",
        description="folder of the engine environment on the nodes; by default the same as on this machine",
    )
    wait_s: PositiveFloat = Field(default=60, description="time in which the cluster must have room for all of it")

    @field_validator("address")
    @classmethod
    def _is_no_client(cls, value: str) -> str:
        if value.startswith("ray://"):
            raise ValueError(
                "Ray Client (ray://) is not supported: run pytest on a node of the cluster, and give HOST:6379 or auto"
            )
        return value

    @field_validator("resources")
    @classmethod
    def _are_custom(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if name in _OWN:
                raise ValueError(f"{name} is no custom resource: set {_OWN[name]}")
            if not name or (name.startswith(("node:", "bundle", "accelerator_type:")) and amount > 1):
                raise ValueError(f"{name!r} is no name of a custom resource")
            if amount > 1 and not float(amount).is_integer():
                raise ValueError(f"{name}: {amount:g}; Ray wants a whole number, or one below 1")
        return value

    @property
    def placed(self) -> Literal["spread", "pack"]:
        """How servers are placed."""
        return self.strategy or ("spread" if self.address else "pack")

    def bundle(self, gpus: int) -> dict[str, float]:
        """Return what the node of one server must have, by Ray's names.

        Args:
            gpus: GPUs of a server.
        """
        found: dict[str, float] = {"CPU": self.cpus_per_server, "GPU": float(gpus), **self.resources}
        return {name: amount for name, amount in found.items() if amount}

    @property
    def load_bundle(self) -> dict[str, float]:
        """What a load node must have, by Ray's names: neither GPUs nor what servers need of their nodes."""
        return {"CPU": self.cpus_per_load_node}

"""Attach to a deployment that already stands: nothing is started, emptied or ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.endpoint.address import without_version
from pytest_kvcache.engine.attached import AttachedEngine
from pytest_kvcache.errors import BootError, ConfigError
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.base import Handle, Launch
from pytest_kvcache.serving.plan import ServingPlan


class AttachLauncher:
    """Yields the plan of a deployment that stands, which has no components.

    Args:
        launch: The boot; its engine is that of a deployment.

    Raises:
        ConfigError: The engine is not that of a deployment.
    """

    name = "attach"

    def __init__(self, launch: Launch) -> None:
        if not isinstance(launch.engine, AttachedEngine):
            raise ConfigError(
                f"launcher attach needs a deployment, and the engine is {launch.engine.where}",
                where="launcher",
                todo="give it an [attach.TIER] table in kvcache.toml, or --kv-base-url",
            )
        self._launch, self._standing = launch, launch.engine.standing

    def plan(self) -> ServingPlan:
        """Return the addresses of the deployment.

        Raises:
            BootError: Its pods are others than at the session's start.
        """
        standing = self._standing
        if moved := standing.changes():
            raise BootError(
                f"the deployment changed since the session began: {'; '.join(moved)}",
                where=standing.base_url,
                todo="run it again once the rollout is over",
            )
        return ServingPlan(
            tier=self._launch.tier,
            components=(),
            base_url=standing.base_url,
            model=self._launch.profile.served_name,
            server_urls=dict(standing.server_urls),
            metrics_urls=dict(standing.metrics_urls),
            balancer=Balancer(kind="url", url=without_version(standing.base_url).partition("?")[0]),
            standing=standing,
        )

    def prepare(self) -> None:
        """Do nothing: the tier's folders are the deployment's own."""

    def start(self, component: Component, logs: Path) -> Handle:  # noqa: ARG002 - part of the protocol
        """Start nothing.

        Raises:
            BootError: Always.
        """
        raise BootError(f"{component.name} cannot be started: the deployment stands", where=self._standing.base_url)

    def restart(self, handle: Handle, logs: Path) -> Handle:
        """Restart nothing.

        Raises:
            BootError: Always.
        """
        return self.start(handle.component, logs)

    def stop(self, handles: list[Handle]) -> None:
        """Do nothing: nothing was started."""

    def describe(self) -> Mapping[str, str]:
        """Return where the deployment is, and its pods with nodes, images and restarts."""
        return {"name": self.name, **self._standing.facts()}

    def clear(self) -> None:
        """Do nothing: what the deployment stored is its own."""

"""HAProxy, configured by a template."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.serving.balancers import templates
from pytest_kvcache.serving.balancers.base import BalancerPlan, Front, Plain
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.places import LOOPBACK


class HaProxy(Plain):
    """A process of HAProxy in the foreground, which belongs to the run's user and writes to the run's log."""

    program = "haproxy"
    install = "apt install haproxy (no service of it is needed: systemctl disable --now haproxy)"

    def plan(self, settings: Balancer, front: Front) -> BalancerPlan:
        """Return HAProxy's process and its configuration."""
        port, metrics_port = front.port(), front.port()
        path = front.scratch / "haproxy.cfg"
        text = templates.filled_in(
            settings, templates.BUILT_IN / "haproxy.cfg.j2", front, port=port, metrics_port=metrics_port
        )
        component = Component(
            name=self.program,
            # -db: in the foreground, and one process.
            argv=(front.tools.program(self.program), "-db", "-f", str(path)),
            stage="balancer",
            env={"TMPDIR": str(front.scratch)},
            files={path: text},
            ready_url=f"{front.url(port)}/health",
        )
        return BalancerPlan((f"{front.url(port)}/v1",), component, f"http://{LOOPBACK}:{metrics_port}/metrics")

    def version_argv(self, program: str) -> Sequence[str]:
        """Return the command that prints `HAProxy version 2.6.12-1+deb12u2 …`."""
        return (program, "-v")

    def check_argv(self, program: str, component: Component) -> Sequence[str]:
        """Return the command that reads the configuration and ends."""
        return (program, "-c", *component.argv[-2:])

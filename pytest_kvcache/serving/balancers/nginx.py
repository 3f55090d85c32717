"""nginx, configured by a template."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.serving.balancers import templates
from pytest_kvcache.serving.balancers.base import BalancerPlan, Front, Plain
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.places import LOOPBACK


class Nginx(Plain):
    """Processes of nginx in the foreground, with all their files in the run's folder and their log in the run's."""

    program = "nginx"
    install = "apt install nginx-light (no service of it is needed: systemctl disable --now nginx)"

    def plan(self, settings: Balancer, front: Front) -> BalancerPlan:
        """Return nginx's process and its configuration."""
        port, metrics_port = front.port(), front.port()
        path, folder = front.scratch / "nginx.conf", front.scratch / "nginx"
        text = templates.filled_in(
            settings, templates.BUILT_IN / "nginx.conf.j2", front, port=port, metrics_port=metrics_port
        )
        component = Component(
            name=self.program,
            # -e: until the configuration is read, its log is a file of the system otherwise.
            argv=(front.tools.program(self.program), "-e", "stderr", "-p", str(folder), "-c", str(path)),
            stage="balancer",
            env={"TMPDIR": str(front.scratch)},
            files={path: text},
            folders=(folder,),
            ready_url=f"{front.url(port)}/health",
        )
        return BalancerPlan((f"{front.url(port)}/v1",), component, f"http://{LOOPBACK}:{metrics_port}/nginx_status")

    def version_argv(self, program: str) -> Sequence[str]:
        """Return the command that prints `nginx version: nginx/1.22.1`."""
        return (program, "-v")

    def check_argv(self, program: str, component: Component) -> Sequence[str]:
        """Return the command that reads the configuration and ends."""
        return (program, "-t", *component.argv[1:])

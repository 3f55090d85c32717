"""How endpoints are asked that change a server: those of vLLM's developer mode, and LMCache's control of its caches."""

from __future__ import annotations

from typing import Protocol


class Control(Protocol):
    """Sends requests from the machine on which a component runs."""

    def post(self, component: str, url: str, body: object) -> tuple[int, str]:
        """Send a request to an endpoint of a component; return status and text.

        Raises:
            KvCacheError: The component or its machine does not answer.
        """

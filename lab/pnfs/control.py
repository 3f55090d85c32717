"""Requests that only the guest may send: its relay empties an LMCache for nobody beyond its own machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from lab.pnfs.lab import Lab

_LIMIT_S = 125.0
#: Runs on the guest's own Python, which starts sooner than that of the host's environment.
_SCRIPT = """
import os, sys, urllib.error, urllib.request
headers = {"Authorization": "Bearer " + os.environ["KEY"], "Content-Type": "application/json"}
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), headers, method="POST")
try:
    answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode(errors="replace"))
"""


@dataclass(frozen=True)
class GuestControl:
    """Sends requests from the guest.

    Args:
        lab: The lab.
        key: Key of the boot.
    """

    lab: Lab
    key: str = field(repr=False)

    def post(self, component: str, url: str, body: object) -> tuple[int, str]:  # noqa: ARG002 - all are in the guest
        """Send a request to an endpoint of a component; return status and text.

        Raises:
            RunError: The guest or the component does not answer.
        """
        text = "" if body is None else json.dumps(body)
        done = self.lab.run(["/usr/bin/python3", "-c", _SCRIPT, url, text], env={"KEY": self.key}, limit_s=_LIMIT_S)
        status, _, said = done.output.partition(" ")
        return int(status), said.rstrip("\n")

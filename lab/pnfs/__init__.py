"""A pNFS mount over soft-RoCE in a guest of its own: real layouts and an unmodified client, without the hardware.

The guest is one User-Mode Linux process. It is metadata server, data server and client at once, and talks to the host
by one wire, which ends in a network namespace that the lab makes and that nothing is routed out of.

**It shows what is correct, never what is fast**: soft-RoCE, client and servers in one kernel, a test server.
"""

from lab.pnfs.guest import Done, GuestProcess
from lab.pnfs.lab import LABEL, Lab
from lab.pnfs.settings import LabSettings

__all__ = ["LABEL", "Done", "GuestProcess", "Lab", "LabSettings"]

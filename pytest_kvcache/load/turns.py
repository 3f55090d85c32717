"""Which server gets which request where no balancer is there, and the client takes turns."""

from __future__ import annotations


def turn_of(user: int, number: int, servers: int) -> int:
    """Return the index of the server: the same in every boot, whatever the times of the run.

    A user goes to the next server with each question, and users who begin with the same one go to different servers.

    Args:
        user: Number of the user.
        number: Number of the question in the user's session.
        servers: How many servers there are.
    """
    return (user + number) % servers

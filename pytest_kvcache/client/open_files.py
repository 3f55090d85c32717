"""Raises the process's own limit of open files, since every open stream is an open file."""

from __future__ import annotations

import resource


def raise_open_files(needed: int = 0) -> int:
    """Raise the soft limit of open files to the hard one, and return it.

    Args:
        needed: Number of files that are going to be open.

    Raises:
        OSError: The hard limit is lower than `needed`; the message says what to do.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise OSError(
            f"{needed} open files are needed and the hard limit is {hard}: raise it (`ulimit -Hn {needed}` as root, "
            "LimitNOFILE= of a systemd unit, --ulimit nofile= of docker run, nofile in /etc/security/limits.conf), "
            "or spread the load over more worker processes"
        )
    return hard

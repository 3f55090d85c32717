"""Makes the guest's root folder: a small Debian with the user programs of NFS and RDMA. It is a plain folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from lab.pnfs import host, packages

INIT = Path(__file__).parent / "guest" / "first.sh"
#: `python3` brings the libraries that a Python of the host links to; `autofs` makes the automount that expires.
PACKAGES = (
    "autofs", "ibverbs-providers", "iproute2", "kmod", "libnuma1", "nfs-common", "nfs-kernel-server", "procps",
    "python3", "rdma-core", "rpcbind",
)  # fmt: skip
_TOOLS = {"mmdebstrap": ("mmdebstrap",)}


def build(target: Path, work: Path, say: Callable[[str], None]) -> None:
    """Make the root folder.

    Args:
        target: The folder.
        work: Folder for downloads and tools.
        say: Gets a line for each step.

    Raises:
        SetupError: A step failed.
    """
    suite = host.release().name
    say(f"making the guest's root folder of Debian {suite}")
    usr = packages.tools(_TOOLS, work / "tools", work / "downloads")
    program = shutil.which("mmdebstrap") or str(usr / "bin" / "mmdebstrap")
    options = ["--mode=root", "--variant=minbase", '--aptopt=APT::Install-Recommends "false"']
    # In a mount namespace of its own: of a build that is killed no /proc or /dev stays mounted below the folder, which
    # the next build removes.
    argv = [program, *options, f"--include={','.join(PACKAGES)}", suite, str(target), packages.mirror(suite)]
    packages.run(["unshare", "--mount", "perl", *argv], log=work / "root.log")
    # The host's own init is never started: this one is, by its name on the kernel's command line.
    first = target / "sbin" / "lab-init"
    shutil.copy(INIT, first)
    first.chmod(0o755)
    for name in ("lab", "old", "overlay"):
        (target / name).mkdir()

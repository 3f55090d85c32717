"""Builds the guest's kernel: User-Mode Linux from Debian's own source package."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.pnfs import host, packages
from pytest_kvcache.errors import SetupError

CONFIG = Path(__file__).parent / "guest" / "kernel.config"
#: Programs that the kernel's Makefiles want, and their packages; unpacked beside the build where the host lacks them.
_TOOLS = {"flex": ("flex", "libfl2"), "bison": ("bison",), "m4": ("m4",)}


@dataclass(frozen=True)
class Change:
    """A change of the kernel's source.

    Args:
        path: File.
        old: Text that is in it once.
        new: Text in its place.
    """

    path: str
    old: str
    new: str


_LAYOUTS = "fs/nfsd/flexfilelayout.c"
_REGISTERS = "arch/x86/um/os-Linux/registers.c"
#: Of NFS, the one thing that is changed is the *server's* flexfiles layout, a test of the kernel's own makers: it sends
#: clients back to itself, and always by the netid `tcp`. It is to name the transport by which the client came; the
#: server's transports are called `tcp` and `rdma`, which are the very netids. The parameters make servers that hand out
#: layouts which lead nowhere, for the table of wrong mounts. The client, which is what is tested, is as Debian has it.
CHANGES = (
    Change(
        _LAYOUTS,
        '#include "vfs.h"\n',
        '#include "vfs.h"\n\n#include <linux/moduleparam.h>\n\n'
        "static char ff_netid[FF_NETID_LEN + 1];\n"
        "module_param_string(ff_netid, ff_netid, sizeof(ff_netid), 0644);\n"
        "static char ff_server[INET6_ADDRSTRLEN];\n"
        "module_param_string(ff_server, ff_server, sizeof(ff_server), 0644);\n"
        "static bool ff_fallback;\n"
        "module_param(ff_fallback, bool, 0644);\n"
        "static int ff_uid = -1;\n"
        "module_param(ff_uid, int, 0644);\n",
    ),
    Change(
        _LAYOUTS,
        "\tfl->gid = inode->i_gid;\n",
        "\tif (ff_uid >= 0)\n\t\tfl->uid = make_kuid(&init_user_ns, ff_uid);\n\tfl->gid = inode->i_gid;\n",
    ),
    Change(
        _LAYOUTS,
        "\n\t/* Do not allow a IOMODE_READ segment",
        "\tif (ff_fallback)\n\t\tfl->flags &= ~FF_FLAGS_NO_IO_THRU_MDS;\n\n\t/* Do not allow a IOMODE_READ segment",
    ),
    Change(
        _LAYOUTS,
        'netid, FF_NETID_LEN + 1, "tcp");\n\t\tda->netaddr.netid_len = 3;',
        'netid, FF_NETID_LEN + 1, "%s",\n'
        "\t\t\t ff_netid[0] > '-' ? ff_netid : rqstp->rq_xprt->xpt_class->xcl_name);\n"
        "\t\tda->netaddr.netid_len = strlen(da->netaddr.netid);\n"
        "\t\tif (ff_server[0] > '-')\n\t\t\tstrscpy(addr, ff_server, sizeof(addr));",
    ),
    # User-Mode Linux 6.1 has room for the registers of AVX-512 and sets just so many. A host's kernel takes no other
    # number than it has, and with AMX (Intel since 2023) that is 11 KB: later kernels ask the host, as is done here.
    Change("arch/x86/um/user-offsets.c", "HOST_FP_SIZE, 2696)", "HOST_FP_SIZE, 12288)"),
    Change(_REGISTERS, "int have_xstate_support;\n", "int have_xstate_support;\nstatic unsigned long fp_bytes;\n"),
    Change(_REGISTERS, "have_xstate_support = 1;", "have_xstate_support = 1, fp_bytes = iov.iov_len;"),
    Change(
        _REGISTERS,
        "iov.iov_len = FP_SIZE * sizeof(unsigned long);\n\t\tif (ptrace(PTRACE_SETREGSET",
        "iov.iov_len = fp_bytes;\n\t\tif (ptrace(PTRACE_SETREGSET",
    ),
    # vLLM's worker wants this line of /proc/PID/status, which belongs to CPUSETS, which User-Mode Linux has not.
    Change(
        "fs/proc/array.c",
        "\tcpuset_task_status_allowed(m, task);\n",
        '\tcpuset_task_status_allowed(m, task);\n\tseq_puts(m, "Mems_allowed_list:\\t0\\n");\n',
    ),
)


def source_package(release: host.Release) -> str:
    """Return the name of the package with the kernel's source."""
    return f"linux-source-{release.series}"


def build(target: Path, work: Path, say: Callable[[str], None]) -> None:
    """Build the kernel.

    Args:
        target: File of the kernel.
        work: Folder for sources and objects (2 GB), which the caller may keep.
        say: Gets a line for each step.

    Raises:
        SetupError: A step failed.
    """
    package = source_package(host.release())
    downloads, source, objects = work / "downloads", work / package, work / "objects"
    usr = packages.tools(_TOOLS, work / "tools", downloads)
    archive = packages.download([package], downloads)[package]
    say(f"unpacking {archive.name}")
    shutil.rmtree(source, ignore_errors=True)
    _unpack(archive, package, work)
    for change in CHANGES:
        _apply(change, source)
    objects.mkdir(exist_ok=True)
    env = _tool_environment(usr)
    packages.run(
        ["make", "ARCH=um", f"O={objects}", "allnoconfig"],
        cwd=source,
        env={**env, "KCONFIG_ALLCONFIG": str(CONFIG)},
        log=work / "config.log",
    )
    _check_config(objects / ".config")
    say(f"compiling on {os.cpu_count()} processors (five minutes on two)")
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    packages.run(["make", "ARCH=um", f"O={objects}", jobs, "linux"], cwd=source, env=env, log=work / "build.log")
    shutil.copy(objects / "linux", target)


def _unpack(archive: Path, package: str, work: Path) -> None:
    """Unpack the source archive that the package holds."""
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as outer,
        subprocess.Popen(
            ["tar", "-xO", f"./usr/src/{package}.tar.xz"], stdin=outer.stdout, stdout=subprocess.PIPE
        ) as inner,
    ):
        done = subprocess.run(["tar", "-xJ", "-C", str(work)], stdin=inner.stdout, check=False)
    if done.returncode or inner.returncode:
        raise SetupError("could not be unpacked", where=str(archive), todo="is there room? remove it, and try again")


def _apply(change: Change, source: Path) -> None:
    path = source / change.path
    text = path.read_text(encoding="utf-8")
    if text.count(change.old) != 1:
        raise SetupError(
            f"is not as expected: {text.count(change.old)} times {change.old.strip()[:60]!r}",
            where=change.path,
            todo="the kernel's source has changed: see lab/pnfs/kernel.py",
        )
    path.write_text(text.replace(change.old, change.new), encoding="utf-8")


def _check_config(config: Path) -> None:
    """Check that no option that was asked for was dropped for want of another."""
    there = set(config.read_text(encoding="utf-8").splitlines())
    asked = [line for line in CONFIG.read_text(encoding="utf-8").splitlines() if line.startswith("CONFIG_")]
    lost = [line for line in asked if line not in there]
    if lost:
        raise SetupError(f"not set after Kconfig: {', '.join(lost)}", where=str(CONFIG))


def _tool_environment(usr: Path) -> dict[str, str]:
    env = {
        "PATH": f"{usr / 'bin'}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": str(usr / "lib" / "x86_64-linux-gnu"),
    }
    if (usr / "share" / "bison").is_dir():
        env["BISON_PKGDATADIR"] = str(usr / "share" / "bison")
    if (usr / "bin" / "m4").exists():
        env["M4"] = str(usr / "bin" / "m4")
    return env

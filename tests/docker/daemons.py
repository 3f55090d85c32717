"""Daemons beside the machine's own, started for a test: Podman's, one behind SSH, one behind TLS, and a registry."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_kvcache.runs.ports import free_ports


def missing(*programs: str) -> str:
    """Return why a test that needs these programs is skipped, "" where all are there."""
    found = [name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    return f"{', '.join(found)} not installed" if found else ""


def which(program: str) -> str:
    """Return the path of a program, also of one for administrators."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or program


@contextlib.contextmanager
def running(argv: list[str], log: Path, ready: Callable[[], bool], *, user: str = "") -> Iterator[None]:
    """Run a program for the body, once it is ready.

    Args:
        argv: The program.
        log: File of its output.
        ready: Whether it serves.
        user: Runs it, in place of this one.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL, user=user or None)
    try:
        deadline = time.monotonic() + 30
        while not ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        if argv[0] == "unshare":  # it takes no notice of SIGTERM, and has the kernel end all that it runs
            process.kill()
        process.terminate()
        process.wait(30)


def answers(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def podman(folder: Path) -> Iterator[str]:
    """Serve Podman's socket with a storage of its own; yield its address."""
    path = folder / "p.sock"
    # Podman asks for more than a root without CAP_SYS_RESOURCE may give.
    (folder / "containers.conf").write_text('[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n')
    argv = [
        "env",
        f"CONTAINERS_CONF={folder}/containers.conf",
        "podman",
        "--root",
        str(folder / "storage"),
        "--runroot",
        str(folder / "run"),
        "--cgroup-manager=cgroupfs",
    ]
    argv += ["--runtime", which("runc"), "system", "service", "--time=0", f"unix://{path}"]
    try:
        with running(argv, folder / "podman.log", path.exists):
            yield f"unix://{path}"
    finally:
        subprocess.run(["umount", "-l", str(folder / "storage" / "overlay")], check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[Path]:
    """Serve SSH on loopback with keys of its own; yield a folder for PATH whose `ssh` knows it as the host `far`."""
    (port,) = free_ports(1)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    host_key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"PidFile none\nSetEnv PATH={os.environ['PATH']}\n"
    )
    (folder / "config").write_text(
        f"Host far\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {folder}/user\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {folder}/known\n StrictHostKeyChecking yes\n"
    )
    programs = folder / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    (programs / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    argv = [which("sshd"), "-D", "-e", "-f", str(folder / "sshd_config")]
    with running(argv, folder / "sshd.log", lambda: answers(port)):
        yield programs


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Serve a registry on loopback, which Docker takes without TLS; yield its address."""
    (port,) = free_ports(1)
    (folder / "registry.yml").write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/registry\n"
        f"http:\n  addr: 127.0.0.1:{port}\nlog:\n  level: warn\n"
    )
    argv = [which("docker-registry"), "serve", str(folder / "registry.yml")]
    with running(argv, folder / "registry.log", lambda: answers(port)):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def dockerd(folder: Path, *args: str, address: str = "", before: tuple[str, ...] = ()) -> Iterator[str]:
    """Serve a second Docker daemon without networks; yield its address.

    Args:
        folder: For all that it writes; to be short, since sockets are in it.
        args: More arguments.
        address: Where it listens; a socket in the folder unless given.
        before: A command that runs it.
    """
    folder.mkdir(exist_ok=True)
    where = address or f"unix://{folder}/d.sock"
    argv = [*before, which("dockerd"), "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    argv += ["--pidfile", str(folder / "pid"), "-H", where, "--bridge=none", "--iptables=false", *args]
    port = int(where.rpartition(":")[2]) if where.startswith("tcp://") else 0
    try:
        with running(argv, folder / "log", lambda: answers(port) if port else (folder / "d.sock").exists()):
            yield where
    finally:  # dockerd leaves a network namespace, or its own folder, mounted
        left = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if f" {folder}/" in line]
        for path in reversed(left):
            subprocess.run(["umount", "-l", path], check=False)


def certificates(folder: Path) -> None:
    """Make an authority, and certificates of a daemon on loopback and of its client, in two folders."""
    for part in ("daemon", "client"):
        (folder / part).mkdir(parents=True)

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test", "-days", "2")
    for part, extension in (("daemon", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")):
        openssl("req", *new, "-keyout", f"{part}/key.pem", "-out", f"{part}.csr", "-subj", f"/CN={part}")
        (folder / f"{part}.ext").write_text(extension + "\n")
        signs = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{part}.ext")
        openssl("x509", "-req", "-in", f"{part}.csr", *signs, "-out", f"{part}/cert.pem")
        shutil.copy(folder / "ca.pem", folder / part / "ca.pem")

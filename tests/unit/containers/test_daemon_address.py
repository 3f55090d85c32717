"""The daemon is the one that the `docker` command would talk to."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.runs.daemon_address import DaemonAddress, address_of
from pytest_kvcache.runs.daemon_ssh import ssh_argv

USUAL = "unix:///var/run/docker.sock"


def context(home: Path, name: str, host: str, *, certs: bool = False, skips: bool = False) -> Path:
    """Make a context as `docker context create` does; return the folder of its certificates."""
    key = hashlib.sha256(name.encode()).hexdigest()
    meta, tls = (home / ".docker" / "contexts" / kind / key for kind in ("meta", "tls"))
    meta.mkdir(parents=True)
    endpoint = {"Host": host, "SkipTLSVerify": skips}
    content = {"Name": name, "Metadata": {}, "Endpoints": {"docker": endpoint}}
    (meta / "meta.json").write_text(json.dumps(content))
    if certs:
        (tls / "docker").mkdir(parents=True)
        (tls / "docker" / "ca.pem").touch()
    return tls / "docker"


def current(home: Path, content: object) -> None:
    """Write the configuration of the `docker` command."""
    (home / ".docker").mkdir(exist_ok=True)
    (home / ".docker" / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("unix:///run/user/1000/docker.sock", "unix:///run/user/1000/docker.sock"),
        ("ssh://gpu-1", "ssh://gpu-1"),
        ("ssh://me@gpu-1:2222/", "ssh://me@gpu-1:2222"),
        ("ssh://me@[fd00::1]:2222/run/user/7/docker.sock", "ssh://me@[fd00::1]:2222/run/user/7/docker.sock"),
        ("tcp://127.0.0.1", "tcp://127.0.0.1:2375"),
        ("tcp://localhost:4243", "tcp://localhost:4243"),
        ("tcp://[::1]:2375", "tcp://[::1]:2375"),
    ],
)
def test_docker_host(host: str, url: str, tmp_path: Path) -> None:
    """DOCKER_HOST names a socket, a host behind SSH, or a port of this machine."""
    assert address_of({"DOCKER_HOST": host, "HOME": str(tmp_path)}) == DaemonAddress(url)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("tcp://192.0.2.1:2375", "not allowed without TLS"),
        ("tcp://gpu-1", "not allowed without TLS"),
        ("tcp://127.0.0.1:2375/path", "not allowed"),
        ("tcp://me@127.0.0.1:2375", "not allowed"),
        ("tcp://", "names no host"),
        ("tcp://127.0.0.1:port", "is no address"),
        ("ssh://me:s3cret@gpu-1", "has a password in it"),
        ("ssh://-oProxyCommand=x", "names no host"),
        ("ssh://-l@gpu-1", "names no host"),
        ("ssh://", "names no host"),
        ("unix://docker.sock", "not absolute"),
        ("npipe:////./pipe/docker_engine", "not allowed"),
        ("fd://", "not allowed"),
        ("http://127.0.0.1:2375", "not allowed"),
        ("/var/run/docker.sock", "not allowed"),
        ("ssh://gpu-1?x=1", "not allowed"),
        ("gpu-1", "not allowed"),
    ],
)
def test_docker_host_that_cannot_be(host: str, said: str, tmp_path: Path) -> None:
    """What no daemon of a pair can be is refused by name of the variable, in a line without the password."""
    with pytest.raises(ConfigError, match=said) as caught:
        address_of({"DOCKER_HOST": host, "HOME": str(tmp_path)})
    assert caught.value.where == "DOCKER_HOST"
    assert "s3cret" not in str(caught.value)


def test_tls_of_the_environment(tmp_path: Path) -> None:
    """DOCKER_TLS_VERIFY asks for certificates, of DOCKER_CERT_PATH or of docker's folder, and for their port."""
    base = {"DOCKER_HOST": "tcp://gpu-1", "HOME": str(tmp_path)}
    assert address_of({**base, "DOCKER_TLS_VERIFY": "1"}) == DaemonAddress("tcp://gpu-1:2376", tmp_path / ".docker")
    named = address_of({**base, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/certs"})
    assert named == DaemonAddress("tcp://gpu-1:2376", Path("/certs"))
    assert not address_of({**base, "DOCKER_TLS": "1"}).verify
    with pytest.raises(ConfigError, match="without TLS"):
        address_of({**base, "DOCKER_TLS_VERIFY": ""})
    unix = address_of({**base, "DOCKER_HOST": "unix:///x", "DOCKER_TLS_VERIFY": "1"})
    assert unix == DaemonAddress("unix:///x")


def test_contexts(tmp_path: Path) -> None:
    """DOCKER_HOST comes before DOCKER_CONTEXT, that before the current context, and that before the usual socket."""
    home = {"HOME": str(tmp_path)}
    assert address_of(home) == DaemonAddress(USUAL)
    certs = context(tmp_path, "far", "tcp://gpu-1:2376", certs=True)
    # Without a config.json, too: `docker --context far` works then.
    assert address_of({**home, "DOCKER_CONTEXT": "far"}) == DaemonAddress("tcp://gpu-1:2376", certs)
    context(tmp_path, "rootless", "unix:///run/user/7/docker.sock")
    current(tmp_path, {"currentContext": "rootless", "auths": {}})
    assert address_of(home).socket == "/run/user/7/docker.sock"
    assert address_of({**home, "DOCKER_CONTEXT": "far"}).url == "tcp://gpu-1:2376"
    assert address_of({**home, "DOCKER_CONTEXT": "default"}) == DaemonAddress(USUAL)
    assert address_of({**home, "DOCKER_CONTEXT": "far", "DOCKER_HOST": "ssh://h"}) == DaemonAddress("ssh://h")
    elsewhere = {"HOME": "/nowhere", "DOCKER_CONFIG": str(tmp_path / ".docker")}
    assert address_of(elsewhere).socket == "/run/user/7/docker.sock"
    context(tmp_path, "loose", "tcp://gpu-1:2376", certs=True, skips=True)
    assert not address_of({**home, "DOCKER_CONTEXT": "loose"}).verify


def test_contexts_that_cannot_be(tmp_path: Path) -> None:
    """A context that is not there, and a file that is none of docker's, are named with where they stand."""
    home = {"HOME": str(tmp_path)}
    with pytest.raises(
        ConfigError, match=r"DOCKER_CONTEXT: there is no docker context 'far'\n  -> `docker context ls`"
    ):
        address_of({**home, "DOCKER_CONTEXT": "far"})
    current(tmp_path, {"currentContext": "gone"})
    with pytest.raises(ConfigError, match=r"config\.json: currentContext: there is no docker context 'gone'"):
        address_of(home)
    for wrong in ("[]", '{"currentContext": 7}'):
        (tmp_path / ".docker" / "config.json").write_text(wrong)
        with pytest.raises(ConfigError, match=r"config\.json: is not the configuration of docker"):
            address_of(home)
    (tmp_path / ".docker" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        address_of(home)
    context(tmp_path, "open", "tcp://gpu-1:2375")
    with pytest.raises(ConfigError, match=r"docker context open: .* not allowed without TLS"):
        address_of({**home, "DOCKER_CONTEXT": "open"})
    folder = context(tmp_path, "odd", "unix:///x").parents[2] / "meta"
    (folder / hashlib.sha256(b"odd").hexdigest() / "meta.json").write_text('{"Endpoints": {"kubernetes": {}}}')
    with pytest.raises(ConfigError, match="has no docker endpoint"):
        address_of({**home, "DOCKER_CONTEXT": "odd"})


@pytest.mark.parametrize(
    "address",
    [
        DaemonAddress(USUAL),
        DaemonAddress("unix:///odd?name.sock"),
        DaemonAddress("ssh://me@gpu-1:22/run/x.sock"),
        DaemonAddress("tcp://[::1]:2376", Path("/a b?&c"), verify=False),
        DaemonAddress("tcp://h:2376", Path("/certs")),
    ],
)
def test_a_journal_keeps_all_of_it(address: DaemonAddress) -> None:
    """What the text of a journal says is the address that it was made of."""
    assert DaemonAddress.parse(str(address)) == address


def test_the_command_of_ssh() -> None:
    """It never asks; user, port and socket are those of the address, and no part of it can be taken for an option."""
    assert ssh_argv(DaemonAddress("ssh://gpu-1"))[-5:] == ("--", "gpu-1", "docker", "system", "dial-stdio")
    argv = ssh_argv(DaemonAddress("ssh://me@gpu-1:2222/run/user/7/docker.sock"))
    assert argv[-5:] == ("docker", "--host", "unix:///run/user/7/docker.sock", "system", "dial-stdio")
    for pair in (("-l", "me"), ("-p", "2222"), ("-o", "BatchMode=yes"), ("--", "gpu-1")):
        assert pair in list(itertools.pairwise(argv))

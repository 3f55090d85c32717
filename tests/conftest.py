"""Fixtures for the tests of the plugin itself."""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import docker

# pytester forgets the modules that a test imported first, and neither pyarrow's extension types nor NumPy's compiled
# modules can be loaded twice.
import pandas.core.arrays.arrow.extension_types  # noqa: F401
import pytest
import scipy.optimize  # noqa: F401

from pytest_kvcache.engine import setup
from pytest_kvcache.home import home
from tests.neighbours import other, spinning
from tests.projects import Session
from tests.stubs.docker import StubDocker, image_path
from tests.stubs.engine import make_engine

__all__ = ["other", "spinning"]

# What starts the tests in the background may have them ignore signals, and what ignores a signal starts others that do:
# tests that end sessions by signals need what a terminal gives.
if threading.current_thread() is threading.main_thread():
    for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(_number) is signal.SIG_IGN:
            signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

# Taken when this file is imported: later, a test may have moved the plugin's home for its own purposes.
_HOME = home()


@pytest.fixture
def kvcache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for engines, journals and leases."""
    home = tmp_path / "home"
    monkeypatch.setenv("PYTEST_KVCACHE_HOME", str(home))
    # Tests run beside each other, and each of their sessions would wait for those of the others.
    monkeypatch.setenv("PYTEST_KVCACHE_MACHINE", f"{os.getpid()}-{tmp_path.name}")
    return home


@pytest.fixture(scope="session")
def port_leases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sessions of all tests lease their ports, whatever home they have: they run beside each other."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "ports"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def stub_engine(imported: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine environment of stub programs."""
    return make_engine(tmp_path_factory.mktemp("engine") / "stub")


@pytest.fixture(scope="session")
def real_engine() -> Path:
    """The engine environment that `make test` has made."""
    engine = setup.installed(_HOME)
    if engine is None:
        pytest.fail("the engine environment is missing: run `make setup`", pytrace=False)
    return engine.path


@pytest.fixture(scope="session")
def imported() -> None:
    """What sessions in this process import on their way.

    pytester forgets modules that a session was the first to import, and the next would import them once more: this is
    requested before it.
    """
    drawing = ("vl_convert", "jinja2")
    for name in ("botocore.session", "docker", *drawing, "pandas.io.formats.string"):
        importlib.import_module(name)
    for package in ("api", "campaign", "load", "preflight", "report", "report.html", "tiers", "workload"):
        folder = importlib.import_module(f"pytest_kvcache.{package}").__path__
        for module in pkgutil.iter_modules(folder, f"pytest_kvcache.{package}."):
            importlib.import_module(module.name)
    importlib.import_module("pytest_kvcache.activation")


@pytest.fixture(scope="session")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests keep the script of the pages, whatever home they have: it takes seconds to make."""
    return tmp_path_factory.mktemp("javascript")


@pytest.fixture
def pages(kvcache_home: Path, javascript: Path) -> None:
    """Sessions and commands of the test make pages, with the script of all tests."""
    kvcache_home.mkdir(exist_ok=True)
    (kvcache_home / "javascript").symlink_to(javascript)


@pytest.fixture
def project(  # noqa: PLR0917 - fixtures
    pytester: pytest.Pytester,
    kvcache_home: Path,
    port_leases: Path,
    stub_engine: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[pytest.Pytester]:
    """A user's project with the perf test from this repository, whose engine is a stub.

    Sessions in this process make no page at their end, which would be a third of their time, unless the test asks for
    the fixture `pages`.
    """
    if "pages" not in request.fixturenames:
        monkeypatch.setattr("pytest_kvcache.report.html.document.of_session", lambda folder: folder)
    kvcache_home.mkdir(exist_ok=True)
    (kvcache_home / "ports").symlink_to(port_leases)
    # A session that a distributed test starts is none itself; and whether CI is set is each test's own matter.
    ci = ("CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE")
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID", *ci):
        monkeypatch.delenv(name, raising=False)
    example = Path(__file__).parent / "perf" / "test_multi_round_qa.py"
    pytester.makepyfile(test_multi_round_qa=example.read_text(encoding="utf-8"))
    pytester.makepyprojecttoml(
        f"""
        [tool.pytest.ini_options]
        addopts = ["--strict-markers", "--strict-config", "-p", "no:randomly"]
        kv_engine = "{stub_engine}"
        kv_profile = "stub"
        """
    )
    yield pytester
    Session.end_all()


@pytest.fixture
def daemon(
    tmp_path: Path, stub_engine: Path, socket_of_daemon: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StubDocker]:
    """A daemon that has the image `kv:1`, with stub programs."""
    stub = StubDocker({"kv:1": "sha256:1"}, {"PATH": image_path(tmp_path / "image", stub_engine)})
    monkeypatch.setattr(docker, "DockerClient", stub)
    yield stub
    for left in list(stub.all):
        left.remove(force=True, v=True)


@pytest.fixture
def socket_of_daemon(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where DOCKER_HOST leads: something listens there."""
    path = tmp_path_factory.mktemp("d") / "d.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        yield f"unix://{path}"

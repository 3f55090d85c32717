"""The launcher `ray` in the suite of all launchers, on a cluster that is made for the boot."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pytest_kvcache.engine.named import engine_named
from pytest_kvcache.tiers import catalogue
from tests.conformance.__main__ import tried
from tests.conformance.kills import killed
from tests.conformance.launchers import Case, booted
from tests.stubs.engine import make_engine, toml


@pytest.fixture
def case(tmp_path: Path, kvcache_home: Path) -> Case:
    """The launcher with stub programs."""
    config = tmp_path / "kvcache.toml"
    config.write_text(toml())
    engine = engine_named(str(make_engine(tmp_path / "engine")))
    return Case("ray", engine, catalogue.load(config).profile("stub"), kvcache_home, tmp_path, boot_s=300)


def test_a_cluster_of_this_machine(case: Case) -> None:
    """On a cluster that is made for the boot, every check of the suite holds."""
    column = tried(case)
    assert {value for value in column.values() if not isinstance(value, float)} == {"holds"}


def test_the_pair_of_a_cluster_that_is_made_listens_on_loopback(case: Case) -> None:
    """Ray takes the machine's outward address for itself; nothing of the pair is reached by it."""
    with booted(case) as boot:
        plan = boot.pair.plan
        urls = [plan.base_url, *plan.server_urls.values(), *plan.metrics_urls.values()]
        assert {urlsplit(url).hostname for url in urls} == {"127.0.0.1"}


def test_a_killed_agent_is_named_with_its_servers(case: Case) -> None:
    """An agent that is killed ends the boot with its node and servers, and its watchdog leaves nothing."""
    said = killed(case, "agent")
    assert said.startswith("node NODE was lost, with ")
    assert said.endswith("; nothing left")

"""Real pairs of the locked and of older versions of vLLM and LMCache, and one that is refused (`make versions`).

Environments that are not there are made (2.6 GB each; 5.5 where pip finds no CPU build of the torch that a vLLM needs).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_kvcache.engine import setup
from pytest_kvcache.home import home
from tests.projects import Project, configure, run

pytestmark = pytest.mark.engine

#: Taken when this file is imported: the fixture `project` moves the plugin's home.
_HOME = home()
SESSION = """
[profiles.mp]
extends = "cpu-tiny"
lmcache_mode = "mp"
[profiles.mp.rules]
canary = false
other_work = 9
[profiles.mp.workload]
context_tokens = [3500]
yardsticks = 0
"""
#: Of each tier, where there are no yardsticks.
GATES = ("ttft", "speed", "decode", "tokens")
METRICS = "vLLM 0.24.0: no --enable-per-request-metrics; needs 0.25.0"
LEVELS = "no lmcache_mp_lookup_hit_l1/l2 counters; needs 0.5.5"


def session(
    project: Project, variant: setup.Variant, *tiers: str
) -> tuple[pytest.RunResult, dict[str, dict[str, Any]]]:
    """Boot each tier once with an engine of these versions; return the session and run.json of each tier."""
    engine = setup.setup(_HOME, print, variant)
    configure(project, SESSION)
    named = [word for tier in tiers for word in ("--tier", tier)]
    options = (f"--kv-engine={engine.path}", "--kv-profile=mp", "--record-baselines", "--kv-boots=1")
    result = run(project, *named, *options)
    facts = {
        tier: json.loads(path.read_text(encoding="utf-8"))
        for tier in tiers
        for path in (project.path / ".kvcache").glob(f"runs/*/{tier}/boot-1/context-3500/run.json")
    }
    return result, facts


@pytest.mark.parametrize(
    ("variant", "lacks", "split"),
    [
        pytest.param(setup.LOCKED, (), True, id="locked"),
        pytest.param(setup.Variant("0.28.0", "0.5.4"), (f"LMCache 0.5.4: {LEVELS}",), False, id="0.28.0-0.5.4"),
        pytest.param(setup.Variant("0.24.0", "0.5.0"), (METRICS, f"LMCache 0.5.0: {LEVELS}"), False, id="0.24.0-0.5.0"),
    ],
)
def test_a_pair_of_these_versions(
    project: Project, variant: setup.Variant, lacks: tuple[str, ...], *, split: bool
) -> None:
    """Both tiers run and are valid; what the versions do not tell is said, and L1 and L2 are one where they are not."""
    result, facts = session(project, variant, "cpu", "pnfs")
    result.assert_outcomes(passed=2 * len(GATES))
    for tier, run_facts in facts.items():
        assert run_facts["faults"] == []
        for line in lacks:
            assert any(each.startswith(line) for each in run_facts["engine_lacks"])
            result.stdout.fnmatch_lines([f"{tier}*: older engine: {line}*"])
        assert bool(run_facts["engine_lacks"]) is bool(lacks)
        per_server = run_facts["proof"]["servers"].values()
        assert all((tokens["unsplit"] == 0) is split for tokens in per_server)
        assert sum(tokens["l1"] + tokens["l2"] + tokens["unsplit"] for tokens in per_server) > 10_000
        assert ("--enable-per-request-metrics" in run_facts["commands"]["vllm-0"]) is (METRICS not in lacks)
        assert ("residual_p50_s" in run_facts["estimates"]) is (METRICS not in lacks)
    assert sum(moved["l2_loaded"] for moved in facts["pnfs"]["proof"]["moved"].values()) > 0
    assert ("L1+L2" in result.stdout.str()) is not split


def test_a_pair_below_the_floor(project: Project) -> None:
    """An LMCache whose server cannot be asked is refused before a boot, with what is missing and what to install."""
    result, facts = session(project, setup.Variant(lmcache="0.4.4"), "pnfs")
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["*LMCache 0.4.4: no /healthcheck and /metrics on --http-port; needs 0.4.5*"])
    result.stdout.fnmatch_lines(["*install LMCache 0.4.7 or newer*"])
    assert facts == {}
    assert "servers ready" not in result.stdout.str()

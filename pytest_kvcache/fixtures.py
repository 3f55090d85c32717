"""The fixtures that a perf test uses. Definitions only: what they do is in `perf.py`, imported when one is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_kvcache.campaign.state import PerfState
    from pytest_kvcache.config.profile import Profile
    from pytest_kvcache.perf import BaselineCheck, MultiRoundQa
    from pytest_kvcache.serving.pair import ServingPair
    from pytest_kvcache.serving.tier import Tier
    from pytest_kvcache.verdict.metrics import Metric


class NoBenchmark:
    """Stands in for pytest-benchmark where that was left out (`-p no:benchmark`): verdicts do not depend on it."""

    @pytest.fixture
    def benchmark(self) -> None:
        """Nothing."""


def _state(config: pytest.Config) -> PerfState:
    from pytest_kvcache.campaign.state import KEY  # noqa: PLC0415 - heavy

    state = config.stash.get(KEY, None)
    if state is None:
        pytest.fail("this needs `-m perf` or `--tier NAME` on the command line", pytrace=False)
    return state


@pytest.fixture(scope="session")
def kv_profile(pytestconfig: pytest.Config) -> Profile:
    """The profile that runs: model, sizes, workload, tolerances."""
    return _state(pytestconfig).profile


@pytest.fixture(scope="session")
def kv_tier(request: pytest.FixtureRequest) -> Tier:
    """The tier of this test; one that cannot run here is skipped, or fails where --tier names it."""
    state = _state(request.config)
    from pytest_kvcache import perf  # noqa: PLC0415 - heavy

    return perf.usable(request.param, state)


@pytest.fixture
def kv_context(request: pytest.FixtureRequest) -> int:
    """The length of the user context (tokens): one test for each of the profile's."""
    length: int = request.param
    return length


@pytest.fixture
def kv_gate(request: pytest.FixtureRequest) -> Metric:
    """A metric that is judged (TTFT, processing speed, decode throughput): one test for each."""
    metric: Metric = request.param
    return metric


@pytest.fixture(scope="session")
def vllm_pair(kv_tier: Tier, pytestconfig: pytest.Config) -> Iterator[ServingPair]:
    """A pair of vLLM servers on the tier, behind a round-robin router, for tests that talk to it themselves.

    Booted once a tier. Its OpenAI endpoint is `vllm_pair.base_url`, with the model `vllm_pair.model`.
    """
    from pytest_kvcache import perf  # noqa: PLC0415 - heavy

    with perf.shared_pair(kv_tier, _state(pytestconfig)) as pair:
        yield pair


@pytest.fixture
def multi_round_qa(kv_tier: Tier, request: pytest.FixtureRequest) -> MultiRoundQa:
    """Measure the tier with the profile's workload, by default LMCache's multi-round QA.

    `multi_round_qa(context_tokens=2000)` boots pairs of its own, as many as the verdicts need, and serves all contexts
    that the session's tests ask for on each.
    """
    state = _state(request.config)
    from pytest_kvcache import activation, perf  # noqa: PLC0415 - heavy

    return perf.MultiRoundQa(state, kv_tier, activation.selected_contexts(request.session.items, kv_tier))


@pytest.fixture
def kv_baseline(request: pytest.FixtureRequest, benchmark: object) -> BaselineCheck:
    """Hold a result against the stored baseline: `kv_baseline.check(result, kv_gate)`."""
    state = _state(request.config)
    from pytest_kvcache import perf  # noqa: PLC0415 - heavy

    return perf.BaselineCheck(state, request.node, benchmark)

"""The fixtures that a perf test uses. Only their definitions are here: `perf.py`, imported on use, does their work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache import options, selection
from pytest_kvcache.campaign.key import KEY

if TYPE_CHECKING:
    from pytest_kvcache.campaign.state import PerfState
    from pytest_kvcache.config.profile import Profile
    from pytest_kvcache.perf import BaselineCheck, LoadPair, Measure, MeasureTier
    from pytest_kvcache.serving.pair import ServingPair
    from pytest_kvcache.serving.tier import Tier
    from pytest_kvcache.verdict.gates import AnyGate


class NoBenchmark:
    """Stands in for pytest-benchmark where it was left out (`-p no:benchmark`): verdicts do not depend on it."""

    @pytest.fixture
    def benchmark(self) -> None:
        """Return None in place of pytest-benchmark's fixture, since nothing is measured with it."""


def _state(request: pytest.FixtureRequest) -> PerfState:
    """Return the session's state. The first test to ask for a fixture only while it runs has the state made here."""
    state = request.config.stash.get(KEY, None)
    if state is not None:
        return state
    item: pytest.Item = request._pyfuncitem  # the test that asks, for session-scoped fixtures too
    if not selection.is_asked_for(item, request.config):
        tier = options.spelled(request.config, "--tier")
        marked = item.get_closest_marker(options.MARKER) is not None
        mark = "`-m perf`" if marked else "@pytest.mark.perf and `-m perf`,"
        pytest.fail(f"this needs {mark} or `{tier} NAME` on the command line", pytrace=False)
    if selection.is_distributed(request.config):
        pytest.fail("perf tests measure one pair at a time and cannot be distributed: leave out -n", pytrace=False)
    from pytest_kvcache import activation  # noqa: PLC0415 - heavy

    told = ""
    try:
        return activation.activate(request.config, [item])
    except pytest.UsageError as error:
        told = str(error)
    pytest.fail(told, pytrace=False)


@pytest.fixture(scope="session")
def kv_profile(request: pytest.FixtureRequest) -> Profile:
    """The session's one profile: model, sizes, workload, tolerances; --kv-profile names it."""
    return _state(request).profile


@pytest.fixture(scope="session")
def kv_tier(request: pytest.FixtureRequest) -> Tier:
    """The tier of this test. If the tier cannot run here, the test is skipped, or fails where --tier names the tier."""
    state = _state(request)
    from pytest_kvcache import tier_check, values  # noqa: PLC0415 - heavy

    with tier_check.told_plainly():
        name = values.given(request, [tier.name for tier in state.settings.tiers])
    return tier_check.usable(name, state)


@pytest.fixture
def kv_context(request: pytest.FixtureRequest) -> int:
    """The length of the user context (tokens); the test runs once for each context length of the profile."""
    state = _state(request)
    from pytest_kvcache import tier_check, values  # noqa: PLC0415 - heavy

    with tier_check.told_plainly():
        return values.context(values.given(request, state.profile.workload.context_tokens), state.profile)


@pytest.fixture
def kv_gate(request: pytest.FixtureRequest) -> AnyGate:
    """A gate; the test runs once for each: TTFT, processing speed, decode throughput and the profile's own gates."""
    state = _state(request)
    from pytest_kvcache import tier_check, values  # noqa: PLC0415 - heavy

    with tier_check.told_plainly():
        known = [gate.short for gate in values.gates(state.profile)]
        tier = values.tier_name(request)
        return values.gate(values.given(request, known), state.profile, tier)


@pytest.fixture(scope="session")
def vllm_pair(kv_tier: Tier, kv_profile: Profile, request: pytest.FixtureRequest) -> Iterator[ServingPair]:
    """A pair of vLLM servers on the tier, behind the balancer of the profile, for tests that send requests themselves.

    The pair is booted once for each tier. Its OpenAI endpoint is `vllm_pair.base_url`, its model `vllm_pair.model`.
    """
    state = _state(request)
    from pytest_kvcache import perf, tier_check  # noqa: PLC0415 - heavy

    tier_check.check_profile(kv_profile, state)
    with perf.shared_pair(tier_check.usable(kv_tier, state), state) as pair:
        yield pair


@pytest.fixture
def multi_round_qa(kv_tier: Tier, kv_profile: Profile, request: pytest.FixtureRequest) -> MeasureTier:
    """Measure the tier with the profile's workload, by default LMCache's multi-round QA.

    `multi_round_qa(context_tokens=2000)` boots pairs of its own, as many as the verdicts need. Each pair serves all
    contexts that the session's tests ask for.
    """
    state = _state(request)
    from pytest_kvcache import activation, perf, tier_check  # noqa: PLC0415 - heavy

    tier_check.check_profile(kv_profile, state)
    tier = tier_check.usable(kv_tier, state)
    return perf.MeasureTier(state, tier, activation.selected_contexts(request.session.items, tier))


@pytest.fixture
def kv_measure(kv_profile: Profile, request: pytest.FixtureRequest) -> Measure:
    """Measure any tier with `kv_measure(tier="pnfs", context_tokens=2000)`, to compare tiers with each other."""
    state = _state(request)
    from pytest_kvcache import activation, perf, tier_check  # noqa: PLC0415 - heavy

    tier_check.check_profile(kv_profile, state)
    return perf.Measure(state, lambda tier: activation.selected_contexts(request.session.items, tier))


@pytest.fixture
def kv_load(kv_tier: Tier, vllm_pair: ServingPair, request: pytest.FixtureRequest) -> LoadPair:
    """Send a workload of your own to `vllm_pair`: `kv_load(workload)` returns its figures and requests."""
    state = _state(request)
    from pytest_kvcache import perf, tier_check  # noqa: PLC0415 - heavy

    return perf.LoadPair(state, tier_check.usable(kv_tier, state), vllm_pair)


@pytest.fixture
def _kv_benchmark_clock(request: pytest.FixtureRequest) -> None:
    """Give the test's `benchmark` a clock that replays the measured times; request this before `benchmark`.

    Tests that name `kv_baseline` got the clock when they were collected. This fixture is for tests that call
    `getfixturevalue("kv_baseline")`.
    """
    _state(request)
    from pytest_kvcache.report.benchmark import mark  # noqa: PLC0415 - heavy

    mark(request.node)


@pytest.fixture
def kv_baseline(
    request: pytest.FixtureRequest, _kv_benchmark_clock: None, benchmark: object
) -> Iterator[BaselineCheck]:
    """Compare a result with the stored baseline: `kv_baseline.check(result, kv_gate)`."""
    state = _state(request)
    from pytest_kvcache import activation, perf  # noqa: PLC0415 - heavy

    items = request.session.items
    yield perf.BaselineCheck(state, request.node, benchmark, lambda gain: activation.gain_contexts(items, gain))
    if hasattr(benchmark, "skipped"):
        # A test that ended before `check` has given its reason; pytest-benchmark would add that it was not used.
        benchmark.skipped = True

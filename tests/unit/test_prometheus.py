"""Endpoints that answer with something else than counters."""

from __future__ import annotations

import pytest

from pytest_kvcache.telemetry.counters import faults
from pytest_kvcache.telemetry.prometheus import FOREIGN, scrape
from tests.unit.storage.test_folder import answering

COUNTED = {"vllm:x_total": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE html>\n<html><body>Sign in</body></html>\n",
        '<html>\n<p class="a">502 Bad Gateway</p>\n</html>',
        '{"detail": "Not Found"}',
        "Not Found",
    ],
    ids=["page", "proxy", "json", "text"],
)
def test_a_page_in_the_place_of_counters(text: str) -> None:
    """What is no Prometheus text raises nothing, counts nothing, and is the fault that makes a run invalid."""
    with answering(text) as url:
        found = scrape(url)
    assert found == {FOREIGN: 1.0}
    for before, after in ((found, COUNTED), (COUNTED, found), (found, found)):
        (fault,) = faults({"vllm-0": before}, {"vllm-0": after})
        assert fault.startswith("vllm-0: its counters could not be read: /metrics answered with something")
        assert "another program has its port" in fault


def test_an_endpoint_that_is_not_there() -> None:
    """Who does not answer has no counters, and nothing else is said of it."""
    assert scrape("http://127.0.0.1:1/metrics", timeout_s=0.2) == {}

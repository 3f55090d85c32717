"""Performance regression testing of KV cache offloading, as a pytest plugin.

All names that a test, a hook, a tier kind or a workload of your own needs are exported here (docs/api.md). Each is
imported when it is first used, so that sessions which do not use the plugin do not pay for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_kvcache.api.figures import Figures, Latency, Shares, Ttft
    from pytest_kvcache.api.result import MeasuredBoot, Result
    from pytest_kvcache.api.session import Failure, PairBoot, SessionResult
    from pytest_kvcache.api.verdict import Verdict
    from pytest_kvcache.check import Check, Finding
    from pytest_kvcache.config.profile import Profile
    from pytest_kvcache.errors import (
        BaselineError,
        BootError,
        ConfigError,
        KvCacheError,
        NotMeasuredError,
        RunError,
        SetupError,
        TierUnavailableError,
    )
    from pytest_kvcache.perf import BaselineCheck, LoadPair, Measure, MeasureTier
    from pytest_kvcache.serving.claim import Claim
    from pytest_kvcache.serving.component import Component
    from pytest_kvcache.serving.offload import Offload, PerServer, Reach, TierPlan
    from pytest_kvcache.serving.pair import ServingPair
    from pytest_kvcache.serving.tier import Tier, TierContext
    from pytest_kvcache.tiers.base import TierModel
    from pytest_kvcache.verdict.estimate import Goodput
    from pytest_kvcache.verdict.gates import AnyGate
    from pytest_kvcache.verdict.metrics import Metric
    from pytest_kvcache.workload.base import Workload
    from pytest_kvcache.workload.script import Conversation, Message, Script, Turn
    from pytest_kvcache.workload.tokens import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "AnyGate",
    "BaselineCheck",
    "BaselineError",
    "BootError",
    "Check",
    "Claim",
    "Component",
    "ConfigError",
    "Conversation",
    "Failure",
    "Figures",
    "Finding",
    "Goodput",
    "KvCacheError",
    "Latency",
    "LoadPair",
    "Measure",
    "MeasureTier",
    "MeasuredBoot",
    "Message",
    "Metric",
    "NotMeasuredError",
    "Offload",
    "PairBoot",
    "PerServer",
    "Profile",
    "Reach",
    "Result",
    "RunError",
    "Script",
    "ServingPair",
    "SessionResult",
    "SetupError",
    "Shares",
    "Tier",
    "TierContext",
    "TierModel",
    "TierPlan",
    "TierUnavailableError",
    "Tokenizer",
    "Ttft",
    "Turn",
    "Verdict",
    "Workload",
    "__version__",
]

#: The module that defines each name. The imports above say the same to type checkers; this is read at run time.
_MODULES = {
    "api.figures": ("Figures", "Latency", "Shares", "Ttft"),
    "api.result": ("MeasuredBoot", "Result"),
    "api.session": ("Failure", "PairBoot", "SessionResult"),
    "api.verdict": ("Verdict",),
    "check": ("Check", "Finding"),
    "config.profile": ("Profile",),
    "errors": (
        "BaselineError",
        "BootError",
        "ConfigError",
        "KvCacheError",
        "NotMeasuredError",
        "RunError",
        "SetupError",
        "TierUnavailableError",
    ),
    "perf": ("BaselineCheck", "LoadPair", "Measure", "MeasureTier"),
    "serving.claim": ("Claim",),
    "serving.component": ("Component",),
    "serving.offload": ("Offload", "PerServer", "Reach", "TierPlan"),
    "serving.pair": ("ServingPair",),
    "serving.tier": ("Tier", "TierContext"),
    "tiers.base": ("TierModel",),
    "verdict.estimate": ("Goodput",),
    "verdict.gates": ("AnyGate",),
    "verdict.metrics": ("Metric",),
    "workload.base": ("Workload",),
    "workload.script": ("Conversation", "Message", "Script", "Turn"),
    "workload.tokens": ("Tokenizer",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # a type checker that sees a module's __getattr__ accepts any name

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

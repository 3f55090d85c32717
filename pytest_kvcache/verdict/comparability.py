"""Which of the keys that must be equal for a comparison are not (pure)."""

from __future__ import annotations

from collections.abc import Mapping

#: The balancer of results that do not name theirs; which version it had they do not say.
_BALANCER, _BALANCER_VERSION, _FORMER = "serving.balancer", "serving.balancer_version", "vllm-router round_robin"


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return a line for each key that is not the same in both.

    A result from before there was a choice of balancers has no key for it, and had the one that there was.
    """
    old, new = _with_balancer(old, new), _with_balancer(new, old)
    keys = sorted(old.keys() | new.keys())
    return [
        f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _with_balancer(keys: Mapping[str, str], other: Mapping[str, str]) -> Mapping[str, str]:
    """Return the keys with those of the balancer, where only the other result has them."""
    if _BALANCER in keys or _BALANCER not in other:
        return keys
    version = {_BALANCER_VERSION: other[_BALANCER_VERSION]} if _BALANCER_VERSION in other else {}
    return {**keys, _BALANCER: _FORMER, **version}

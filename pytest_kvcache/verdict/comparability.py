"""Which of the keys that must be equal for a comparison are not (pure)."""

from __future__ import annotations

from collections.abc import Mapping


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return a line for each key that is not the same in both."""
    keys = sorted(old.keys() | new.keys())
    return [
        f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in keys
        if old.get(key) != new.get(key)
    ]

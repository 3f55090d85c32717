"""Options, ini keys, fixtures and hooks, read from the modules that declare them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_kvcache import fixtures, hookspecs, options


@dataclass(frozen=True)
class Option:
    """One option of pytest's command line, or one ini key.

    Args:
        names: All of its names, the one to write first.
        value: Name of its value in the help; "" for a switch.
        text: What it does.
    """

    names: tuple[str, ...]
    value: str
    text: str


@dataclass
class Registered:
    """What `options.add_options` registers; it takes the part of pytest's parser."""

    options: list[Option] = field(default_factory=list)
    ini: list[Option] = field(default_factory=list)

    def getgroup(self, *_: str) -> Registered:
        """Return itself, since options are listed in one group."""
        return self

    def addoption(self, *names: str, **attributes: Any) -> None:
        """Note an option, with the short name that the plugin registers once other plugins have taken theirs."""
        dest = attributes.get("dest", names[0].lstrip("-").replace("-", "_"))
        short = [name for name, (of, _) in options.SHORT.items() if of == dest]
        self.options.append(Option((*short, *names), attributes.get("metavar", ""), attributes["help"]))

    def addini(self, name: str, help: str, **attributes: Any) -> None:
        """Note an ini key."""
        self.ini.append(Option((name,), str(attributes.get("type", "string")), help))


def registered() -> Registered:
    """Return all options and ini keys of the plugin."""
    found = Registered()
    options.add_options(cast("pytest.Parser", found))
    return found


@dataclass(frozen=True)
class Fixture:
    """One fixture.

    Args:
        name: What a test asks for.
        type: What the test gets.
        scope: `function` or `session`.
        text: Its docstring.
    """

    name: str
    type: str
    scope: str
    text: str


def public_fixtures() -> list[Fixture]:
    """Return the fixtures that tests may ask for, in the order of the module."""
    return list(_fixtures())


def _fixtures() -> Iterator[Fixture]:
    tree = ast.parse(Path(fixtures.__file__).read_text(encoding="utf-8"))
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        for decorator in map(ast.unparse, node.decorator_list):
            if decorator.startswith("pytest.fixture"):
                returned = ast.unparse(node.returns) if node.returns else ""
                kind = returned.removeprefix("Iterator[").removesuffix("]") if "Iterator" in returned else returned
                scope = "session" if "session" in decorator else "function"
                yield Fixture(node.name, kind, scope, ast.get_docstring(node) or "")


def hooks() -> dict[str, tuple[str, str]]:
    """Return signature and docstring of every hook that another plugin may implement, by its name."""
    found = {name: each for name, each in vars(hookspecs).items() if name.startswith("pytest_kvcache_")}
    return {name: (f"{name}{_signature(each)}", inspect.getdoc(each) or "") for name, each in found.items()}


def _signature(hook: Any) -> str:
    parameters = inspect.signature(hook).parameters.values()
    return f"({', '.join(f'{each.name}: {each.annotation}' for each in parameters)})"

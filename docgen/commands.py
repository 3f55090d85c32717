"""Subcommands of `pytest-kvcache` and their flags, read from the parsers that take them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_kvcache import cli


@dataclass(frozen=True)
class Flag:
    """One flag or argument of a subcommand.

    Args:
        names: Its spellings; for an argument without dashes the name of its value.
        value: What follows it; "" for a switch.
        text: What it does, with its default.
        required: Whether the command needs it.
    """

    names: tuple[str, ...]
    value: str
    text: str
    required: bool


@dataclass(frozen=True)
class Command:
    """One subcommand, such as `baselines list`."""

    name: str
    text: str
    flags: tuple[Flag, ...]


def commands() -> list[Command]:
    """Return all subcommands, those of a subcommand after it."""
    return [each for name in cli.COMMANDS for each in _of(name, _parser(name), cli.COMMANDS[name])]


def _parser(name: str) -> argparse.ArgumentParser:
    (choices,) = _subparsers(cli._parser(name))
    parser: argparse.ArgumentParser = choices.choices[name]
    return parser


def _subparsers(parser: argparse.ArgumentParser) -> list[argparse._SubParsersAction[argparse.ArgumentParser]]:
    return [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]


def _of(name: str, parser: argparse.ArgumentParser, text: str) -> Iterator[Command]:
    yield Command(name, text, tuple(_flags(parser)))
    for group in _subparsers(parser):
        helps = {each.dest: each.help or "" for each in group._choices_actions}
        for each, inner in group.choices.items():
            yield from _of(f"{name} {each}", inner, helps.get(each, ""))


def _flags(parser: argparse.ArgumentParser) -> Iterator[Flag]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        text = (action.help or "") % {"default": action.default} if action.help else ""
        switch = action.nargs == 0
        shown = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
        names = tuple(action.option_strings) or (str(shown),)
        value = "" if switch or not action.option_strings else str(shown)
        yield Flag(names, value, text, action.required)

"""Outputs that cannot show every character."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from pytest_kvcache import cli
from pytest_kvcache.showable import inert, make_showable, showable

_TEXT = "1 … 2 → 3 \N{MULTIPLICATION SIGN} 4 \N{EN DASH} 5 °C é █ 😀"
_ENCODINGS = ["ascii", "latin-1", "cp1252", "koi8-r", "shift_jis", "utf-8"]


def stream(encoding: str) -> io.TextIOWrapper:
    """Return an output of that encoding, strict as Python's standard output is."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)


def written(to: io.TextIOWrapper) -> bytes:
    """Return what was written."""
    buffer = to.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()


@pytest.mark.parametrize("encoding", _ENCODINGS)
def test_each_encoding_shows_what_it_can(encoding: str) -> None:
    """What an encoding has is written as it is, the rest as plainer characters or escapes; nothing is an error."""
    out = stream(encoding)
    make_showable(out)
    print(_TEXT, file=out)
    text = written(out).decode(encoding)
    assert text == f"{showable(_TEXT, out)}\n"
    assert text.startswith(
        "1 … 2 →" if encoding in {"utf-8", "shift_jis"} else "1 … 2 ->" if encoding == "cp1252" else "1 "
    )
    if encoding == "ascii":
        assert text == "1 ... 2 -> 3 x 4 - 5 deg C \\xe9 \\u2588 \\U0001f600\n"
    if encoding == "utf-8":
        assert text == f"{_TEXT}\n"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_file_name_that_is_no_text_is_written_as_its_bytes(encoding: str) -> None:
    """A name that Python could not decode comes out as the bytes that it has."""
    out = stream(encoding)
    make_showable(out)
    print(b"caf\xe9".decode("utf-8", "surrogateescape"), file=out)
    assert written(out) == b"caf\xe9\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a ::b", "a ::b"),
        ("::error::x", "| ::error::x"),
        ("a\n  ::set-output name=x::y\nb", "a\n|   ::set-output name=x::y\nb"),
        ("\t##[error]x", "| \t##[error]x"),
        ("##vso[task.setvariable variable=x]y", "| ##vso[task.setvariable variable=x]y"),
        ("##teamcity[buildStatus text='x']", "| ##teamcity[buildStatus text='x']"),
        ("# a comment\n: and", "# a comment\n: and"),
    ],
)
def test_no_line_of_a_message_commands_a_ci_service(text: str, shown: str) -> None:
    """What a server or a log says is shown, and is no command to the service that runs the session."""
    assert inert(text) == shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_can_say_everything(name: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a subcommand says, and its help, reaches an output that cannot show all of it."""
    module = cli.module_of(name)

    def say_it(_: object, say: Callable[[str], None]) -> int:
        say(_TEXT)
        print(_TEXT, file=sys.stderr)
        return 0

    monkeypatch.setattr(module, "add_arguments", lambda parser: parser.add_argument("--x", help=_TEXT))
    monkeypatch.setattr(module, "run", say_it)
    out, err = stream(encoding), stream(encoding)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    assert cli.main([name]) == 0
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    shown = showable(_TEXT, out).encode(encoding)
    assert shown in written(out)
    assert written(err) == shown + b"\n"
    assert written(out).count(showable("…", out).encode(encoding)) == 2


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_help_is_shown_in_ascii(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The help of each subcommand, with its own words, reaches an output that shows ASCII only."""
    out = stream("ascii")
    monkeypatch.setattr("sys.stdout", out)
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert written(out).startswith(b"usage: pytest-kvcache " + name.encode())

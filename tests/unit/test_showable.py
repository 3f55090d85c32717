"""Outputs that cannot show every character."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from pytest_kvcache import cli
from pytest_kvcache.showable import make_showable, showable
from tests.projects import Project, configure, run_apart, run_folder
from tests.stubs.engine import toml

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


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_can_say_everything(name: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a subcommand says, and its help, reaches an output that cannot show all of it."""
    module = import_module(f"pytest_kvcache.commands.{name}")

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


_POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("encoding", "environ"),
    [("ascii", _POSIX), ("latin-1", {"PYTHONIOENCODING": "latin-1"})],
    ids=["POSIX", "latin-1"],
)
def test_a_session_and_its_summary_in_any_locale(
    project: Project, encoding: str, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables come out line by line where the terminal cannot show all of them; the CLI shows the run there too."""
    configure(project, toml(boots=2, more="# caf\N{LATIN SMALL LETTER E WITH ACUTE} …\n"))
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    result = run_apart(project, "--tier", "gpu", "--record-baselines")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*stub/gpu/50*2*TTFT (s)*-* ... *", "*stub/gpu/50*2*processing speed*"])
    assert "\\n" not in result.stdout.str()
    folder = run_folder(project)
    for command in (["baselines", "show", "stub/gpu/50"], ["report", str(folder)]):
        out, err = stream(encoding), stream(encoding)
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", out)
            patch.setattr("sys.stderr", err)
            assert cli.main(command) == 0
        assert b"gpu" in written(out)
        assert not written(err)


def test_a_folder_whose_name_cannot_be_written_down(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the locale cannot name the folder of results, a sentence says so before a boot."""
    configure(project, toml())
    for key, value in _POSIX.items():
        monkeypatch.setenv(key, value)
    runs = Path("r\N{LATIN SMALL LETTER E WITH ACUTE}sultats")
    result = run_apart(project, "--tier", "gpu", "-k", "ttft", f"--kv-runs={runs}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*its name has characters that the encoding * of this session has not", "*LC_ALL=C.UTF-8*"]
    )

"""Sessions whose output cannot show every character."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pytest_kvcache import cli
from tests.projects import Project, configure, run_apart, run_folder
from tests.stubs.engine import toml


def stream(encoding: str) -> io.TextIOWrapper:
    """Return an output of that encoding, strict as Python's standard output is."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)


def written(to: io.TextIOWrapper) -> bytes:
    """Return what was written."""
    buffer = to.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()


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

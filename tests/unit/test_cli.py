"""The command `pytest-kvcache`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_kvcache import cli


def test_help_imports_nothing_heavy() -> None:
    """Help lists every subcommand, and loads neither the engine's modules nor what only one subcommand needs."""
    code = (
        "import sys; from pytest_kvcache import cli\n"
        "try: cli.main(['--help'])\n"
        "finally: print(*(m for m in ('pandas', 'scipy', 'pydantic') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, loaded = done.stdout.splitlines()
    assert loaded == ""
    assert all(any(line.strip().startswith(name) for line in shown) for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_declares_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own help is reached through the name in the list."""
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: pytest-kvcache {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_an_interruption_while_a_subcommand_is_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the seconds that its imports take ends a command as at any other moment."""

    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "import_module", interrupted)
    assert cli.main([name]) == 130

"""The site of the documentation: its navigation, its generated reference, and the commands that pages name."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from docgen import commands, markdown, pytest_side, settings
from docgen.files import FILES, RUN_JSON
from docgen.html import foreign, without_backslashes
from docgen.pages import pages
from pytest_kvcache import cli, fixtures, hookspecs, options, plugin
from tests.pages import PAGES, ROOT, Command, Written, parsed, steps

DOCS = ROOT / "docs"
GENERATED = pages()


def _config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return loaded


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for each in nav.values():
            yield from _leaves(each)
    else:
        for each in nav:
            yield from _leaves(each)


def test_every_page_is_in_the_navigation_once() -> None:
    """The navigation has all pages, written and generated, and names none that is not there."""
    named = list(_leaves(_config()["nav"]))
    there = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert sorted(named) == sorted([*there, *GENERATED])


def test_warnings_are_errors_and_nothing_comes_from_the_network() -> None:
    """The build is strict about links and anchors, and the theme loads no font."""
    config = _config()
    assert config["strict"] is True
    assert config["theme"]["font"] is False
    assert set(config["validation"]["links"].values()) == {"warn"}
    assert config["validation"]["links"]["anchors"] == "warn"
    assert "repo_url" not in config  # the theme would ask the host for its stars
    recipe = next(line for line in (ROOT / "Makefile").read_text("utf-8").splitlines() if "mkdocs build" in line)
    assert "--strict" in recipe
    assert "-q" not in recipe  # mkdocs counts no warning that it does not print


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://example.org/x.js"></script>',
        '<link rel="stylesheet" href="//example.org/x.css">',
        '<p><img alt="" src="http://example.org/x.png"></p>',
    ],
)
def test_a_page_that_loads_from_another_host_is_found(html: str) -> None:
    """Scripts, styles and images of other hosts are named, and plain links are not."""
    assert len(foreign(html)) == 1
    assert foreign('<a href="https://example.org">x</a><img src="images/x.svg">') == []


class _Parser:
    """Notes what the plugin registers, in another way than the generator does."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def getgroup(self, *_: object) -> _Parser:
        return self

    def addoption(self, *names: str, **_: object) -> None:
        self.names += names

    def addini(self, name: str, **_: object) -> None:
        self.names.append(name)


def test_every_option_and_ini_key_is_in_the_reference() -> None:
    """Long names, short names and ini keys each stand in the page of options."""
    parser: Any = _Parser()
    options.add_options(parser)
    assert len(parser.names) > 15
    page = GENERATED["reference/options.md"]
    assert [name for name in (*parser.names, *options.SHORT) if f"`{name}`" not in page] == []


def test_a_bar_in_a_cell_is_shown_without_its_backslash() -> None:
    """The site shows `a|b` in a table's code as it is, and changes nothing outside of tables."""
    assert without_backslashes(r"<p>a\|b</p><td><code>a\|b</code></td>") == r"<p>a\|b</p><td><code>a|b</code></td>"


def test_options_of_the_running_plugin_are_in_the_reference(pytestconfig: pytest.Config) -> None:
    """What pytest itself knows as ours is what the page lists."""
    group = pytestconfig._parser.getgroup("kvcache")
    ours = {name for option in group.options for name in option.names()}
    listed = {name for option in pytest_side.registered().options for name in option.names}
    assert ours == listed


def test_every_fixture_is_in_the_reference() -> None:
    """Each fixture that the plugin exports has a heading and its docstring's first words."""
    page = GENERATED["reference/fixtures.md"]
    public = [name for name in plugin.__all__ if not name.startswith("_")]
    assert len(public) > 5
    assert {each.name for each in pytest_side.public_fixtures()} == set(public)
    for each in pytest_side.public_fixtures():
        assert hasattr(fixtures, each.name)
        assert f"## {each.name}\n" in page
        assert each.text.split("\n")[0] in page


def test_every_hook_is_in_the_reference() -> None:
    """Each hook of the specification stands there with its arguments."""
    names = [name for name in vars(hookspecs) if name.startswith("pytest_")]
    assert set(names) == set(pytest_side.hooks())
    page = GENERATED["reference/hooks.md"]
    assert [name for name in names if f"## {name}\n" not in page or f"{name}(config" not in page] == []


@pytest.mark.parametrize(("name", "model"), list(settings.models()), ids=[name for name, _ in settings.models()])
def test_every_key_is_in_the_reference_with_a_description(name: str, model: Any) -> None:
    """Each key of each table of kvcache.toml has a type and a meaning, and the kind has a heading."""
    page = GENERATED["reference/kvcache-toml.md"]
    assert name in page
    listed = {key.name for key in settings.keys(model)}
    assert listed | {"kind"} == set(model.model_fields) - {"name", "tier"} | {"kind"}
    for key in settings.keys(model):
        assert f"| `{key.name}` | {markdown._cell(key.kind)} |" in page
        assert key.description, f"{name}: {key.name} has no description"
        assert "Annotated" not in key.kind
        assert "typing" not in key.kind


def test_every_model_below_a_profile_has_its_own_table() -> None:
    """A key whose value is a table that the models know has that table on the page too."""
    shown = {model for _, model in settings.models()}
    for _, model in settings.models():
        for field in model.model_fields.values():
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                assert any(issubclass(each, inner) for each in shown), inner


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_flag_of_every_subcommand_is_in_the_reference(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the help of a subcommand prints as flags stands on the page, with a meaning."""
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    printed = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    mine = [each for each in commands.commands() if each.name.split()[0] == name]
    listed = {flag for each in mine for f in each.flags for flag in f.names}
    page = GENERATED["reference/commands.md"]
    assert {flag for flag in listed if flag.startswith("--")} <= printed | {"--yes"}
    assert all(markdown._cell(f"`{flag}`") in page for flag in listed)
    assert all(f.text for each in mine for f in each.flags)
    assert f"## {name}\n" in page


def test_files_are_in_the_reference() -> None:
    """Each file of a run and each key of run.json stands on the page of files."""
    page = GENERATED["reference/files.md"]
    assert [name for name in (*FILES, *RUN_JSON) if f"| `{name}` |" not in page] == []


@given(cell=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_no_cell_breaks_its_table(cell: str) -> None:
    """Whatever a cell holds, a row is one line with as many cells as titles."""
    *_, row, end = markdown.table(("a", "b"), [(cell, "x")]).split("\n")
    assert end == ""
    assert len(re.findall(r"(?<!\\)\|", row.replace("\\\\", ""))) >= 3
    assert len([*re.finditer(r"(?<!\\)\|", re.sub(r"[^|\\]", "", row))]) <= 4


TEXT = """
    make one   # comment
    two

<!-- not run: a reason -->

    three

prose
    not a command

<!-- exits with 3: a reason -->

    four

- a list

```python
# tests/x.py
    five
```

    six
"""


def test_what_a_page_has_its_reader_do() -> None:
    """Blocks are commands, a comment counts for the block below it only, and a fence that names a file is that file."""
    assert parsed(TEXT) == [
        Command("make one   # comment"),
        Command("two"),
        Command("three", not_run="a reason"),
        Command("four", code=3),
        Written("tests/x.py", "    five\n"),
        Command("six"),
    ]


def test_pages_have_commands_and_few_that_are_not_run() -> None:
    """README and tutorial have commands, and only those that would install from the network are not run."""
    found = [each for page in PAGES for each in steps(page) if isinstance(each, Command)]
    left_out = [each for each in found if each.not_run]
    assert len(found) >= 12
    assert len(left_out) == 3
    assert all("network" in each.not_run for each in left_out)


def test_the_readme_is_one_screen() -> None:
    """README has 60 lines at most, and all of its links lead to files."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    links = re.findall(r"\]\(([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).is_file()] == []


def _texts() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in (ROOT / "README.md", *DOCS.rglob("*.md"))}


def test_pages_name_targets_and_subcommands_that_exist() -> None:
    """Whatever page says `make NAME` or `pytest-kvcache NAME`, the Makefile or the command has that name."""
    makefile = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", "help"], capture_output=True, text=True, check=True
    )
    targets = {line.split()[1] for line in makefile.stdout.splitlines()}
    for page, text in _texts().items():
        for target in re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, f"{page}: make {target}"
        for name in re.findall(r"(?:`|^    |/)pytest-kvcache ([a-z]+)", text, re.MULTILINE):
            assert name in cli.COMMANDS, f"{page}: pytest-kvcache {name}"


def test_data_of_the_generator_cannot_be_changed() -> None:
    """What pages are made of is frozen, so that one page cannot change another."""
    option = pytest_side.registered().options[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        option.value = "x"  # type: ignore[misc]
    assert Path(fixtures.__file__).is_file()

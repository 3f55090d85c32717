"""The generated pages of the site, as Markdown."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from pydantic import BaseModel

from docgen import commands, pytest_side, settings
from docgen.files import FILES, RUN_JSON
from docgen.markdown import code, prose, table

_NOTE = "This page is made from the code when the site is built.\n"


def pages() -> dict[str, str]:
    """Return the content of every generated page by its path below `docs/`."""
    return {
        "reference/options.md": _options(),
        "reference/fixtures.md": _fixtures(),
        "reference/hooks.md": _hooks(),
        "reference/kvcache-toml.md": _kvcache_toml(),
        "reference/commands.md": _commands(),
        "reference/files.md": _files(),
    }


def _options() -> str:
    found = pytest_side.registered()
    return "\n".join(
        [
            "# Options and ini keys\n",
            _NOTE,
            "[Configuration](../configuration.md#command-line-and-ini) says when to use which.\n",
            "## Options of pytest\n",
            "The short names are there unless another plugin has taken them; the long names always work.\n",
            table(
                ("option", "value", "meaning"),
                ((", ".join(map(code, o.names)), code(o.value), o.text) for o in found.options),
            ),
            "## Ini keys\n",
            "They stand in `[tool.pytest.ini_options]` of pyproject.toml, or in another ini file of pytest. An option "
            "on the command line wins over the key of its name.\n",
            table(("key", "type", "meaning"), ((code(i.names[0]), i.value, i.text) for i in found.ini)),
        ]
    )


def _fixtures() -> str:
    parts = ["# Fixtures\n", _NOTE, "[An API to build on](../api.md) shows them in worked tests.\n"]
    for each in pytest_side.public_fixtures():
        parts += [f"## {each.name}\n", f"Type: {code(each.type)}. Scope: {each.scope}.\n", prose(each.text) + "\n"]
    return "\n".join(parts)


def _hooks() -> str:
    parts = ["# Hooks\n", _NOTE, "[An API to build on](../api.md#hooks) has a `conftest.py` that uses them.\n"]
    for name, (signature, text) in pytest_side.hooks().items():
        parts += [f"## {name}\n", f"```python\n{signature}\n```\n", prose(text) + "\n"]
    return "\n".join(parts)


def _kvcache_toml() -> str:
    parts = [
        "# Keys of kvcache.toml\n",
        _NOTE,
        "[Configuration](../configuration.md) explains how the file is found and how tables are laid over the built-in "
        "ones. A key without a default that is not marked as required is simply not set.\n",
        "## Profiles\n",
        "`extends` names a profile from which another one takes the keys that it does not set itself.\n",
    ]
    for name, model in settings.tables().items():
        parts += [f"### {name}\n", *_keys(model)]
    parts += ["## Workloads\n", "The table is `[profiles.NAME.workload]`; `kind` chooses the keys.\n"]
    for kind, model in settings.workloads().items():
        parts += [f'### kind = "{kind}"\n', *_keys(model)]
    parts += ["## Tiers\n", "The table is `[tiers.NAME]`; `kind` chooses the keys.\n"]
    for kind, model in settings.tiers().items():
        parts += [f'### kind = "{kind}" {{ #tier-{kind} }}\n', *_keys(model)]
    return "\n".join(parts)


def _keys(model: type[BaseModel]) -> Iterable[str]:
    yield prose(inspect.getdoc(model) or "") + "\n"
    if not (found := settings.keys(model)):
        yield "It has no other keys than `kind`.\n"
        return
    rows = ((code(k.name), k.kind, "required" if k.required else code(k.default), k.description) for k in found)
    yield table(("key", "type", "default", "meaning"), rows)


def _commands() -> str:
    parts = ["# Subcommands\n", _NOTE, "Each is called as `pytest-kvcache NAME`.\n"]
    for each in commands.commands():
        parts += [f"## {each.name}\n", f"{each.text[:1].upper()}{each.text[1:]}.\n"]
        if each.flags:
            rows = (
                (", ".join(map(code, f.names)), code(f.value), f.text + (" (required)" if f.required else ""))
                for f in each.flags
            )
            parts.append(table(("flag", "value", "meaning"), rows))
    return "\n".join(parts)


def _files() -> str:
    return "\n".join(
        [
            "# Files of a run\n",
            _NOTE,
            "They lie below `.kvcache/runs/ID/`. `ID` is the date, the time and a random part. "
            "[Results](../results.md) says what to read first.\n",
            table(("file", "what it has"), ((code(name), text) for name, text in FILES.items())),
            "The columns of `requests.parquet` are in [an API to build on](../api.md#results), those of `gpus.parquet` "
            "in [GPUs beside a run](../proof.md#gpus-beside-a-run).\n",
            "## run.json\n",
            table(("key", "what it has"), ((code(name), text) for name, text in RUN_JSON.items())),
        ]
    )

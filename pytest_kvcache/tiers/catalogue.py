"""Merge and validate `kvcache.toml`; every error names the file, the key and what is allowed."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pytest_kvcache.config.attach import Attach
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.project_code import loaded
from pytest_kvcache.serving.tier import Tier
from pytest_kvcache.tiers.registry import imported, tier_kinds
from pytest_kvcache.workload.registry import DEFAULT_KIND, workload_kinds

_BUILTIN = Path(__file__).parents[1] / "config" / "builtin.toml"
_SECTIONS = ("profiles", "tiers", "attach")
#: Messages in the words of TOML, by pydantic's type of error.
_WANTED = {
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "string_type": "must be a text",
    "path_type": "must be a path",
    "float_parsing": "must be a number",
}

Table = dict[str, Any]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Catalogue:
    """All profiles and tiers that a run may name.

    Args:
        profiles: Profiles by name.
        tiers: Tiers by name, in the order in which they run.
        source: The user's file, or None where only the built-in ones are known.
        attach: Deployments that stand, by the name of the tier that each serves.
    """

    profiles: Mapping[str, Profile]
    tiers: Mapping[str, Tier]
    source: Path | None
    attach: Mapping[str, Attach] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """Folder of the user's file."""
        return None if self.source is None else self.source.absolute().parent

    def declared_gates(self, profile: Profile) -> int:
        """Return how many gates share the error of a profile: those of all tiers, contexts and metrics."""
        return len(self.tiers) * len(profile.workload.context_tokens) * len(profile.judged)

    def profile(self, name: str) -> Profile:
        """Return the profile `name`.

        Raises:
            ConfigError: There is no such profile; the message lists the known ones.
        """
        try:
            return self.profiles[name]
        except KeyError:
            told = f"unknown profile {name!r}; known: {', '.join(self.profiles)}"
            raise ConfigError(told, where="--kv-profile", todo=self._place_of("profile")) from None

    def select(self, names: Sequence[str], *, option: str = "--tier") -> list[Tier]:
        """Return the tiers `names`, or all tiers where `names` is empty, in the catalogue's order.

        Raises:
            ConfigError: There is no such tier; the message lists the known ones.
        """
        unknown = [n for n in names if n not in self.tiers]
        if unknown:
            raise ConfigError(
                f"unknown tier {', '.join(map(repr, unknown))}; known: {', '.join(self.tiers)}",
                where=option,
                todo=self._place_of("tier"),
            )
        return [t for n, t in self.tiers.items() if not names or n in names]

    def _place_of(self, what: str) -> str:
        return f"a {what} of your own is a [{what}s.NAME] table in {self.source or 'kvcache.toml, which was not found'}"


def load(source: Path | None) -> Catalogue:
    """Read the built-in catalogue and lay the user's file over it.

    A `[profiles.X]` table changes single keys of the built-in profile X; a new profile starts from the one
    named by `extends`. A `[tiers.X]` table with a `kind` replaces X; a table without it changes keys of X.

    Raises:
        ConfigError: The file has unreadable TOML, an unknown key, or a wrong type or value.
    """
    content = b"" if source is None else _read(source)
    return parse(content, source=source, where=str(source or _BUILTIN))


def parse(content: bytes, *, source: Path | None, where: str) -> Catalogue:
    """Lay the content of a kvcache.toml over the built-in catalogue, as `load` does.

    Args:
        content: Content of the user's file.
        source: Path of the file; relative paths in the content begin in its folder.
        where: Name of the file in errors.

    Raises:
        ConfigError: As `load` does.
    """
    try:
        return laid_over(_parsed(content, where), source=source, where=where)
    except RecursionError:
        raise ConfigError("cannot be read: nested too deeply", where=where) from None


def laid_over(user: Table, *, source: Path | None, where: str) -> Catalogue:
    """Lay the tables of a kvcache.toml over the built-in catalogue, as `parse` does.

    Raises:
        ConfigError: As `load` does.
    """
    builtin = _parsed(_read(_BUILTIN), str(_BUILTIN))
    for key in user:
        if key not in _SECTIONS:
            raise ConfigError(f"unknown key {key!r:.80}; allowed: {', '.join(_SECTIONS)}", where=where)
    for section in _SECTIONS:
        for name, table in _table(user, section, where).items():
            if not isinstance(table, dict):
                raise ConfigError("must be a table", where=f"{where}: {dotted(section, name)}")
            if "name" in table:
                raise ConfigError(
                    "unknown key; the table's own name is the name", where=f"{where}: {dotted(section, name)}.name"
                )
    folder = source.absolute().parent if source else None
    profiles = _profiles(_table(builtin, "profiles", where), _table(user, "profiles", where), where, folder)
    tiers = _tiers(_table(builtin, "tiers", where), _table(user, "tiers", where), where, folder)
    attach = _deployments(_table(user, "attach", where), tiers, where, folder)
    return Catalogue(profiles=profiles, tiers=tiers, source=source, attach=attach)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _parsed(content: bytes, where: str) -> Table:
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise ConfigError(f"cannot be read: {error}", where=where) from error


def dotted(*parts: str | int) -> str:
    """Return the dotted name of a key with its tables, on one line whatever characters the parts have."""
    return ".".join(each if each.isprintable() else json.dumps(each) for each in map(str, parts))


def _table(data: Table, key: str, where: str) -> Table:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"must be a table, not {type(value).__name__}", where=f"{where}: {key}")
    return value


def _merge(base: Table, over: Table) -> Table:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _profiles(builtin: Table, user: Table, where: str, folder: Path | None) -> dict[str, Profile]:
    raw: Table = {}
    for name, table in (*builtin.items(), *user.items()):
        key = f"{where}: {dotted('profiles', name)}"
        base_name = table.get("extends", name)
        if "extends" in table and (not isinstance(base_name, str) or base_name not in raw):
            raise ConfigError(f"{base_name!r:.80} is not a profile; allowed: {', '.join(raw)}", where=f"{key}.extends")
        over = {k: v for k, v in table.items() if k != "extends"}
        raw[name] = _merge(_without_other_kind(raw.get(base_name, {}), over), over)
    return {n: _profile(n, t, f"{where}: {dotted('profiles', n)}", folder) for n, t in raw.items()}


def _without_other_kind(base: Table, over: Table) -> Table:
    """Return `base` without its workload or balancer where `over` has one of another kind, which has other keys."""
    gone = set()
    for key in ("workload", "balancer"):
        new, old = (t.get(key) for t in (over, base))
        if isinstance(new, dict) and isinstance(old, dict) and new.get("kind", old.get("kind")) != old.get("kind"):
            gone.add(key)
    return {k: v for k, v in base.items() if k not in gone}


def _profile(name: str, table: Table, key: str, folder: Path | None) -> Profile:
    workload = table.get("workload")
    if isinstance(workload, dict):
        kinds = workload_kinds()
        kind = workload.get("kind", DEFAULT_KIND)
        if not isinstance(kind, str) or kind not in kinds:
            raise ConfigError(f"{kind!r:.80} is not allowed; allowed: {', '.join(kinds)}", where=f"{key}.workload.kind")
        try:
            model = loaded(kinds[kind])
        except ValueError as error:
            raise ConfigError(str(error), where=f"{key}.workload.kind") from error
        table = {**table, "workload": validate(model, workload, f"{key}.workload", folder)}
    return validate(Profile, {"name": name, **table}, key, folder)


def _tiers(builtin: Table, user: Table, where: str, folder: Path | None) -> dict[str, Tier]:
    raw = dict(builtin)
    for name, table in user.items():
        raw[name] = table if "kind" in table else _merge(raw.get(name, {}), table)
    tiers: dict[str, Tier] = {}
    for name, table in raw.items():
        key = f"{where}: {dotted('tiers', name)}"
        model, keys = _tier_model(table, f"{key}.kind", folder)
        tiers[name] = validate(model, {"name": name, **keys}, key, folder)
    return tiers


def _deployments(user: Table, tiers: Mapping[str, Tier], where: str, folder: Path | None) -> dict[str, Attach]:
    found = {}
    for name, table in user.items():
        key = f"{where}: {dotted('attach', name)}"
        if name not in tiers:
            raise ConfigError(f"is no tier; known: {', '.join(tiers)}", where=key, todo="[attach.TIER] names a tier")
        if "tier" in table:
            raise ConfigError("unknown key; the table's own name is the tier", where=f"{key}.tier")
        found[name] = validate(Attach, {"tier": name, **table}, key, folder)
    return found


def _tier_model(table: Table, key: str, folder: Path | None) -> tuple[type[Any], Table]:
    """Return the class of a tier's kind, and the keys that the class gets."""
    kinds, kind = tier_kinds(), table.get("kind")
    if not isinstance(kind, str) or (":" not in kind and kind not in kinds):
        what = "missing" if kind is None else f"{kind!r:.80} is not allowed"
        raise ConfigError(f"{what}; allowed: {', '.join(kinds)}, or MODULE:CLASS of your own", where=key)
    try:
        model = imported(kind, folder)
    except ValueError as error:
        raise ConfigError(str(error), where=key, todo="docs/api.md shows a tier kind of one's own") from error
    return model, {k: v for k, v in table.items() if k != "kind" or ":" not in kind}


def validate(model: type[M], data: Table, where: str, folder: Path | None = None) -> M:
    """Build `model` from `data`; each of pydantic's findings becomes a line with the key and the allowed values.

    Args:
        model: Class of the result.
        data: The table.
        where: Name of the table in errors.
        folder: Folder in which relative paths begin; None for the present one.

    Raises:
        ConfigError: The table is not valid; the message has every finding.
    """
    try:
        return model.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        found: dict[str, list[str]] = {}
        for each in error.errors():
            loc = _place(data, each)
            found.setdefault(dotted(*loc), []).append(_finding(model, loc, each))
        lines = [
            f"{where}{'.' if key else ''}{key}: {'; or '.join(dict.fromkeys(told))}" for key, told in found.items()
        ]
        raise ConfigError("\n".join(lines), todo="see docs/configuration.md for every key") from error


def _place(data: Any, error: Any) -> tuple[int | str, ...]:
    """Return where in `data` a finding is: pydantic's place less the names of types that it adds for unions."""
    place: list[int | str] = []
    for part in error["loc"]:
        at_key = isinstance(data, dict) and part in data
        if at_key or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            place.append(part)
            data = data[part]
    return (*place, error["loc"][-1]) if error["type"] == "missing" else tuple(place)


def _finding(model: type[BaseModel], loc: tuple[int | str, ...], error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key; allowed: {', '.join(sorted(_fields_at(model, loc[:-1]) - {'name', 'tier'}))}"
    if error["type"] == "literal_error":
        return f"{error['input']!r:.80} is not allowed; allowed: {error['ctx']['expected']}"
    told: str = _WANTED.get(error["type"]) or error["msg"]
    return told.removeprefix("Value error, ")


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> set[str]:
    current = model
    for part in loc:
        field = current.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return set()
        current = annotation
    return set(current.model_fields)

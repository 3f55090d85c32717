"""The keys of `kvcache.toml`, read from the pydantic models that check them."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pytest_kvcache.config.attach import Attach, Kubernetes
from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.config.gates import Gates, ServiceLevel
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.config.ray import RaySettings
from pytest_kvcache.config.rules import Rules
from pytest_kvcache.tiers.registry import tier_kinds
from pytest_kvcache.workload.registry import workload_kinds

_NAMES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "path"}
_BOUNDS = (
    (Gt, "gt", "above"),
    (Ge, "ge", "at least"),
    (Lt, "lt", "below"),
    (Le, "le", "at most"),
    (MultipleOf, "multiple_of", "a multiple of"),
)


@dataclass(frozen=True)
class Key:
    """One key of a table of `kvcache.toml`.

    Args:
        name: The key.
        kind: What its value must be, in words of TOML.
        default: The default as TOML writes it; "" where there is none, with `required`.
        required: Whether the key has to be there.
        description: What the key does.
    """

    name: str
    kind: str
    default: str
    required: bool
    description: str


def keys(model: type[BaseModel]) -> list[Key]:
    """Return the keys of a model in their order, without `name`, which the table's own name is.

    A `kind` that the model itself has is left out, and one that is to be chosen is not.
    """
    fields = model.model_fields.items()
    return [
        _key(name, field)
        for name, field in fields
        if name not in {"name", "tier"} and (name != "kind" or _is_chosen(field))
    ]


def _is_chosen(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) > 1


def tables() -> Mapping[str, type[BaseModel]]:
    """Return the model of every kind of table that has the same keys in every project, by the table's name."""
    return {
        "[profiles.NAME]": Profile,
        "[profiles.NAME.balancer]": Balancer,
        "[profiles.NAME.rules]": Rules,
        "[profiles.NAME.gates]": Gates,
        "[profiles.NAME.gates.slo]": ServiceLevel,
        "[profiles.NAME.ray]": RaySettings,
        "[attach.TIER]": Attach,
        "[attach.TIER.kubernetes]": Kubernetes,
    }


def workloads() -> Mapping[str, type[BaseModel]]:
    """Return the model of every installed kind of workload by `kind`."""
    return {name: point.load() for name, point in workload_kinds().items()}


def tiers() -> Mapping[str, type[BaseModel]]:
    """Return the model of every installed kind of tier by `kind`."""
    return {name: point.load() for name, point in tier_kinds().items()}


def models() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every model of the reference with a name for it."""
    yield from tables().items()
    yield from workloads().items()
    yield from tiers().items()


def _key(name: str, field: FieldInfo) -> Key:
    annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    required = field.is_required()
    default = "" if required else _toml(field.get_default(call_default_factory=True))
    return Key(name, in_words(annotation), default, required, field.description or "")


def in_words(annotation: Any) -> str:
    """Return what a value with this annotation must be, in the words of a person who writes TOML."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = in_words(args[0])
        bounds = ", ".join(_bounds(args[1:]))
        return f"{inner} {bounds}" if bounds else inner
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(in_words(each) for each in args if each is not type(None)))
    if origin in (Literal, tuple, list, dict):
        return _collection(origin, args)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table, see below"
    name = getattr(annotation, "__name__", str(annotation))
    return _NAMES.get(name, name)


def _collection(origin: Any, args: tuple[Any, ...]) -> str:
    if origin is Literal:
        return ", ".join(_toml(each) for each in args)
    if origin is dict:
        return "table" if args[1] is Any else f"table of: {in_words(args[1])}"
    return f"list of: {in_words(args[0])}"


def _bounds(metadata: tuple[Any, ...]) -> Iterator[str]:
    for each in metadata:
        parts = getattr(each, "metadata", [each])  # a FieldInfo holds several
        for part in parts:
            for kind, attribute, word in _BOUNDS:
                if isinstance(part, kind):
                    bound = getattr(part, attribute)
                    yield f"{word} {bound:g}" if isinstance(bound, float) else f"{word} {bound:,}"


def _toml(value: Any) -> str:
    if value is None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }" if value else "{}"
    return f"{value:g}" if isinstance(value, float) else str(value)

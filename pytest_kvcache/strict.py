"""The base class of all settings and files that a person or another process writes for the plugin to read."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

from pytest_kvcache.paths import expanded


class Strict(BaseModel):
    """Base of all settings: unknown keys are errors, objects are frozen, and no type is taken for another.

    pydantic would turn some texts and truth values into numbers. This class refuses them: TOML and JSON have types of
    their own, and `qps = true` is no rate. Infinity and NaN are refused too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _keeps_its_type(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields.get(info.field_name or "")
        if field is not None:
            _refuse_another_type(value, field.annotation)
        return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty: leave the key out for its default")
    return value


#: A text that says something.
NonBlank = Annotated[str, AfterValidator(_not_blank)]


def as_path(value: Any, info: ValidationInfo) -> Any:
    """Return a path that a person has written, absolute where the file's folder is known; other types unchanged.

    Args:
        value: The value as it stands in the file; a path may have `~` and `$NAME`.
        info: Its context has the `folder` of the file, in which relative paths begin.

    Raises:
        ValueError: The value is no path.
    """
    if not isinstance(value, str):
        return value
    return str(((info.context or {}).get("folder") or Path()) / expanded(value))


#: A path that a person writes, with `~` and `$NAME`, relative to the folder of the file that it stands in.
UserPath = Annotated[Path, BeforeValidator(as_path)]


def _refuse_another_type(value: Any, annotation: Any) -> None:
    """Raise ValueError where the annotation asks for a number, a whole number or a bool, and the value is another."""
    if isinstance(value, str | bool | int | float):
        _refuse_another_scalar(value, _plain_types(annotation))
    elif isinstance(value, list | tuple):
        for inner in _element_types(annotation):
            for each in value:
                _refuse_another_type(each, inner)
    elif isinstance(value, dict):
        for inner in _value_types(annotation):
            for each in value.values():
                _refuse_another_type(each, inner)


def _refuse_another_scalar(value: str | float, wanted: set[type]) -> None:
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{value!r:.40} has a NUL, which no program takes")
    if bool in wanted and wanted <= {bool, type(None)} and not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r:.40}")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("must be a number of 64 bits, as TOML's are")
    if not wanted & {int, float} or type(value) in wanted:
        return
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    if isinstance(value, str) and _is_number(value):  # pydantic itself refuses a text that is no number
        raise ValueError(f"must be a number, not {value!r:.40}")
    if isinstance(value, float):
        raise ValueError(f"must be a whole number, not {value!r}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(each for one in get_args(annotation) for each in _alternatives(one))
    return (annotation,)


def _plain_types(annotation: Any) -> set[type]:
    return {each for each in _alternatives(annotation) if isinstance(each, type)}


def _element_types(annotation: Any) -> list[Any]:
    return [
        each
        for one in _alternatives(annotation)
        if get_origin(one) in (list, tuple, set, frozenset)
        for each in get_args(one)
        if each is not Ellipsis
    ]


def _value_types(annotation: Any) -> list[Any]:
    return [get_args(one)[1] for one in _alternatives(annotation) if get_origin(one) is dict]

"""Checks the fields of configurations against the ranges in their types, and reads configurations from JSON.

A range is an `annotated_types.Interval` beside the type, a length is an `annotated_types.Len`, and a choice is a
`Literal`. The text below a field says what it means. `pydantic` finds all of these, so that schemas and forms are made
of them.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Interval, Len

from model.errors import ConfigError

C = TypeVar("C")
_NUMBERS = {int: "an integer", float: "a number"}


class Config:
    """The base of all configurations. Every field is checked against its range, whatever makes the configuration."""

    path: ClassVar[str] = ""
    """The configuration's place in the one around it, as errors name it, such as `chain.`."""
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "use_attribute_docstrings": True,
        "json_schema_serialization_defaults_required": True,
    }
    """Tells pydantic that the text below a field describes it, and that answers hold every field of a configuration."""

    def __post_init__(self) -> None:
        for name, hint in types_of(type(self)).items():
            if (problem := _range_problem(hint, getattr(self, name), f"{self.path}{name}")) is not None:
                raise problem


def types_of(cls: type) -> dict[str, Any]:
    """Return the type of each field, with the range beside it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {one.name: hints[one.name] for one in dataclasses.fields(cls)}


def to_dict(config: object) -> dict[str, Any]:
    """Return the configuration as plain JSON values."""
    return dataclasses.asdict(config)  # type: ignore[call-overload, no-any-return]


def from_dict(cls: type[C], values: Mapping[str, Any], *, path: str = "") -> C:
    """Return the configuration whose `to_dict` was `values`; absent fields take their defaults.

    Raises ConfigError for an unknown field, naming it and the known ones, and for any value of a wrong type or range;
    the `problems` of the error are all that were found.
    """
    known = types_of(cls)
    problems = [
        ConfigError(f"unknown field {path}{name}; expected one of {', '.join(known)}", field=f"{path}{name}")
        for name in sorted(set(values) - set(known))
    ]
    read = {}
    for name in [name for name in values if name in known]:
        try:
            read[name] = _read(known[name], values[name], f"{path}{name}")
        except ConfigError as error:
            problems += error.problems
    if problems:
        problems[0].others = tuple(problems[1:])
        raise problems[0]
    return cls(**read)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, object by object."""
    result = dict(base)
    for name, value in changes.items():
        below = result.get(name)
        result[name] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def _read(hint: Any, value: Any, path: str) -> Any:
    """Return a JSON `value` as the type `hint`. Raises ConfigError if it is of another type, or out of its range."""
    read = _typed(hint, value, path)
    if (problem := _range_problem(hint, read, path)) is not None:
        raise problem
    return read


def _typed(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _typed(arguments[0], value, path)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, path=f"{path}.")  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(arguments[0], item, path) for item in value)
    if origin in (types.UnionType, typing.Union):
        plain, words = _alternatives(arguments)
        if (value is None and types.NoneType in arguments) or (isinstance(value, str) and words):
            return value
        return _typed(plain, value, path)
    if origin is Literal and isinstance(value, str):
        return value
    if hint is float and type(value) is int:
        return float(value) if abs(value) < 1 << 1000 else math.inf
    if isinstance(hint, type) and not dataclasses.is_dataclass(hint) and type(value) is hint:
        return value
    expected = {**_NUMBERS, bool: "true or false", str: "a string"}.get(hint)
    raise ConfigError(
        f"{path} is {value!r}; expected {expected or ('a list' if origin is tuple else 'an object or a name')}",
        field=path,
    )


def _alternatives(arguments: tuple[Any, ...]) -> tuple[Any, list[str]]:
    """Return the member of a union that is neither None nor a Literal, and the words of its Literals."""
    words = [word for one in arguments if typing.get_origin(one) is Literal for word in typing.get_args(one)]
    plain = next(one for one in arguments if one is not types.NoneType and typing.get_origin(one) is not Literal)
    return plain, words


def _range_problem(hint: Any, value: Any, path: str) -> ConfigError | None:
    """Return what is wrong with a value of the right type, or None if nothing is."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        found = (_limit_problem(limit, value, path) for limit in arguments[1:])
        return next(filter(None, found), None) or _range_problem(arguments[0], value, path)
    if origin is tuple:
        return next(filter(None, (_range_problem(arguments[0], item, path) for item in value)), None)
    if origin is Literal and value not in arguments:
        return ConfigError(f"{path} is {value!r}; expected one of {', '.join(arguments)}", field=path)
    if origin in (types.UnionType, typing.Union) and value is not None:
        plain, words = _alternatives(arguments)
        if not (words and isinstance(value, str)):
            return _range_problem(plain, value, path)
        if value not in words:
            number, between = typing.get_args(plain)
            expected = f"{_NUMBERS[number]} from {between.ge} to {between.le}, or {words[0]!r}"
            return ConfigError(f"{path} is {value!r}; expected {expected}", field=path)
    return None


def _limit_problem(limit: Any, value: Any, path: str) -> ConfigError | None:
    if isinstance(limit, Interval):
        low: Any = limit.ge
        high: Any = limit.le if limit.lt is None else limit.lt - 1  # type: ignore[operator]
        if isinstance(value, bool) or not low <= value <= high:  # also refuses NaN
            return ConfigError(f"{path} is {value!r}; expected a number from {low:g} to {high:g}", field=path)
    if isinstance(limit, Len) and not limit.min_length <= len(value) <= (limit.max_length or math.inf):
        return ConfigError(
            f"{path} has {len(value)} entries; expected {limit.min_length} to {limit.max_length}", field=path
        )
    return None

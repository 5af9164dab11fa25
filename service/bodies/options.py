"""The fields of a request body as plain data, for whatever offers them to people: the command line and the client."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

_KINDS: dict[str, type] = {
    "integer": int,
    "number": float,
    "boolean": bool,
    "string": str,
    "array": list,
    "object": dict,
}


@dataclass(frozen=True)
class Option:
    """One field of a request, with its type, range, default and meaning."""

    name: str
    kind: type
    """The type of the field's values: int, float, bool, str, list or dict."""
    words: tuple[str, ...]
    """The words that the field accepts, beside numbers where `kind` is a number; empty when it has no such list."""
    low: float | None
    high: float | None
    default: Any
    """The value that the service takes when the field is absent; None when that is not a constant."""
    meaning: str


def options_of(body: type[BaseModel], *, leave_out: Collection[str] = ()) -> list[Option]:
    """Return the fields of a body in their order, without those in `leave_out`, which the caller offers otherwise."""
    properties = body.model_json_schema()["properties"]
    return [_option(name, schema) for name, schema in properties.items() if name not in leave_out]


def _option(name: str, schema: Mapping[str, Any]) -> Option:
    arms = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return Option(
        name=name,
        kind=_KINDS[arms[0].get("type", "object")],  # an arm without a type is a reference to an object
        words=tuple(word for arm in arms for word in arm.get("enum", [arm["const"]] if "const" in arm else [])),
        low=arms[0].get("minimum"),
        high=arms[0].get("maximum"),
        default=schema.get("default"),
        meaning=" ".join(schema.get("description", "").split()),
    )

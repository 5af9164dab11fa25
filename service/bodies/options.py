"""The fields of a request as one who offers them has to know them: the command, the client, later others."""

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
    """One field of a request."""

    name: str
    kind: type
    """The type of its values: int, float, bool, str, list or dict."""
    words: tuple[str, ...]
    """The texts it may be, as well as numbers if `kind` is one; none stands for any text."""
    low: float | None
    high: float | None
    default: Any
    """What the service takes when the field is absent; None where that is not a constant."""
    meaning: str


def options_of(body: type[BaseModel], *, leave_out: Collection[str] = ()) -> list[Option]:
    """The fields of a body in their order, but those that are offered in another way."""
    properties = body.model_json_schema()["properties"]
    return [_option(name, schema) for name, schema in properties.items() if name not in leave_out]


def _option(name: str, schema: Mapping[str, Any]) -> Option:
    arms = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return Option(
        name=name,
        kind=_KINDS[arms[0].get("type", "object")],  # a reference leads to an object
        words=tuple(word for arm in arms for word in arm.get("enum", [arm["const"]] if "const" in arm else [])),
        low=arms[0].get("minimum"),
        high=arms[0].get("maximum"),
        default=schema.get("default"),
        meaning=" ".join(schema.get("description", "").split()),
    )

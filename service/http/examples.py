"""Examples for the OpenAPI document, made of the schemas: of a field's own example, its default, or its type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JSON = "application/json"
BINARY = {"schema": {"type": "string", "format": "binary"}}
"""The OpenAPI content of an answer that is a file."""
_TIME = "2026-11-24T09:30:00Z"
_OF_TYPE: dict[str, Any] = {"integer": 1, "number": 0.5, "string": "text", "boolean": True, "object": {}}
_PREFIX = "#/components/schemas/"

Schema = Mapping[str, Any]


def add_examples(operation: dict[str, Any], schemas: Mapping[str, Schema]) -> None:
    """Add examples to whatever an operation takes and answers as JSON, unless it has some.

    Doing it twice changes nothing.
    """
    for parameter in operation.get("parameters", []):
        if not ({"example", "examples"} & set(parameter)):
            parameter["example"] = example_of(parameter["schema"], schemas)
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        if media_type == JSON and "examples" not in content:
            content["examples"] = _named(content["schema"], schemas)
    for status, answer in operation["responses"].items():
        content = answer.get("content", {}).get(JSON)
        if status.startswith("2") and content is not None and "example" not in content:
            content["example"] = example_of(content["schema"], schemas)


def _named(schema: Schema, schemas: Mapping[str, Schema]) -> dict[str, Any]:
    """Return all examples of a body under the names that pages show, the simplest first."""
    resolved = _not_null(_resolved(schema, schemas), schemas)
    values = resolved.get("examples") or [example_of(resolved, schemas)]
    return {f"example {number}": {"value": value} for number, value in enumerate(values, 1)}


def example_of(schema: Schema, schemas: Mapping[str, Schema]) -> Any:
    """Return a value that the schema allows."""
    schema = _resolved(schema, schemas)
    if schema.get("examples"):
        return schema["examples"][0]
    for name in ("default", "const"):
        if name in schema:
            return schema[name]
    if "enum" in schema:
        return schema["enum"][0]
    if "properties" in schema:
        return {name: example_of(field, schemas) for name, field in schema["properties"].items()}
    if "anyOf" in schema:
        return example_of(_not_null(schema, schemas), schemas)
    if schema.get("type") == "array":
        return [example_of(schema.get("items", {}), schemas)]
    if schema.get("format") == "date-time":
        return _TIME
    return _OF_TYPE.get(schema.get("type", "object"), {})


def _not_null(schema: Schema, schemas: Mapping[str, Schema]) -> Schema:
    """Return the schema of a field or body without its alternative null."""
    choices = [one for one in schema.get("anyOf", []) if one.get("type") != "null"]
    return _resolved(choices[0], schemas) if choices else schema


def _resolved(schema: Schema, schemas: Mapping[str, Schema]) -> Schema:
    """Return the schema that a reference leads to. Whatever stands beside the reference has precedence."""
    if "$ref" not in schema:
        return schema
    beside = {name: value for name, value in schema.items() if name != "$ref"}
    return {**_resolved(schemas[schema["$ref"].removeprefix(_PREFIX)], schemas), **beside}

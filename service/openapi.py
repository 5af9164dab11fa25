"""The parts of the OpenAPI document that all operations share: errors that any can answer, keys, scopes, examples."""

from __future__ import annotations

from typing import Any

from service.bodies.events import EventBody
from service.bodies.sampling import (
    ClassificationBody,
    ClassifyRequestBody,
    LogDensityBody,
    LogDensityRequestBody,
    SampleBody,
)
from service.door.security import required_scope
from service.http import errors
from service.http.examples import add_examples

_EVERYWHERE = (413, 422, 500, 503)
_BEHIND_THE_DOOR = (401, 403, 429)
_WITH_A_BODY = (400,)
_SECURITY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key of `recovery keys create`. A service without keys, on one machine, asks for none.",
}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Add to the document what FastAPI cannot know, and return it. Completing it twice changes nothing."""
    components = document["components"]
    schemas = components["schemas"]
    # Routes refer to these schemas only by name, so FastAPI does not write them.
    of_samplers = (SampleBody, LogDensityRequestBody, LogDensityBody, ClassifyRequestBody, ClassificationBody)
    for model in (errors.ProblemBody, EventBody, *of_samplers):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    for choice in schemas["TrainConfig"]["properties"]["batch_size"]["anyOf"]:
        # openapi-python-client cannot read an answer with a constant beside a number, but a choice of one word it can.
        if "const" in choice:
            choice["enum"] = [choice.pop("const")]
    # These describe FastAPI's own body of a 422, which is never sent.
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    components["securitySchemes"] = {"key": _SECURITY_SCHEME}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete_operation(path, method.upper(), operation)
            add_examples(operation, schemas)
    return document


def _complete_operation(path: str, method: str, operation: dict[str, Any]) -> None:
    statuses = list(_EVERYWHERE)
    scope = required_scope(method, path)
    if scope is not None:
        statuses += _BEHIND_THE_DOOR
        operation["security"] = [{"key": [str(scope)]}]
    if "requestBody" in operation:
        statuses += _WITH_A_BODY
    answers = operation["responses"]
    for status, answer in errors.documented(*statuses).items():
        already = answers.get(str(status), {})
        if errors.PROBLEM_MEDIA_TYPE not in already.get("content", {}):  # FastAPI puts a body of its own at 422
            answers[str(status)] = answer
    operation["responses"] = dict(sorted(answers.items()))

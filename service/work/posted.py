"""Items that clients send to samplers, as numbers in JSON or as files in a form, with a few options beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from model.event_kinds.pixels import FloatArray
from service.bodies.fields import MODEL_ID
from service.http.errors import Problem
from service.settings import MAX_ITEMS
from service.work.items import from_files, from_lists

JSON, MULTIPART = "application/json", "multipart/form-data"
_MODEL = {"type": "string", "description": "Id of a model, or `id@step`"}
_FILES = {
    "type": "array",
    "items": {"type": "string", "format": "binary"},
    "description": "PNG or JPEG images of the model's size, one an item (pixels v become v/127.5 − 1), or one .npy "
    "file of shape (N, …), of which uint8 are pixels too",
}

B = TypeVar("B", bound=BaseModel)
Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True)
class Posted(Generic[Options]):
    """A request whose options are checked. Its items are not yet, for the model decides their shape."""

    options: Options
    lists: list[Any] | None = None
    files: list[tuple[str, bytes]] = field(default_factory=list)

    def items(self, event_shape: Sequence[int]) -> FloatArray:
        """Return the items (N, *event). Raises Problem."""
        return from_files(self.files, event_shape) if self.lists is None else from_lists(self.lists, event_shape)


async def posted(request: Request, options: type[Options], with_items: type[Options]) -> Posted[Options]:
    """Read a request: `with_items` is the body of JSON, which has the items as `x`, `options` the fields of a form.

    Raises Problem 415, RequestValidationError.
    """
    content_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if content_type == JSON:
        found = _validated(with_items, await request.body())
        return Posted(found, lists=found.x)  # type: ignore[attr-defined]
    if content_type != MULTIPART:
        raise Problem(415, "unsupported-media-type", f"the body is {content_type}; send {JSON} or {MULTIPART}")
    async with request.form(max_files=MAX_ITEMS + 1, max_fields=16) as form:
        files = [(one.filename or "", await one.read()) for one in form.getlist("files") if isinstance(one, UploadFile)]
        fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    return Posted(_validated(options, fields), files=files)


def request_body(with_items: type[BaseModel], **options: str) -> dict[str, Any]:
    """Return the OpenAPI description of such a body, whose form has `options` of these types beside model and files."""
    properties = {"model": _MODEL, "files": _FILES, **{name: {"type": kind} for name, kind in options.items()}}
    form = {"type": "object", "required": ["model", "files"], "properties": properties}
    schema = {"$ref": f"#/components/schemas/{with_items.__name__}"}
    example = {"model": MODEL_ID, "files": ["(digit.png)"]}
    content = {JSON: {"schema": schema}, MULTIPART: {"schema": form, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def _validated(kind: type[B], values: bytes | dict[str, str]) -> B:
    """The values as a body of that kind. Raises RequestValidationError, whose fields are those of the body."""
    try:
        return kind.model_validate_json(values) if isinstance(values, bytes) else kind.model_validate(values)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(errors) from None

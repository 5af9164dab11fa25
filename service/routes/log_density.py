"""POST /log-density: what a client sends, as an array, to a sampler that knows log Z; the answer as JSON."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from model.event_kinds.pixels import FloatArray
from service.bodies.fields import MODEL_ID, random_seed
from service.bodies.models import CalibrationBody
from service.bodies.sampling import ItemDensityBody, LogDensityBody, LogDensityOptions, LogDensityRequestBody
from service.http.errors import Problem, documented, field_problem
from service.settings import LOG_DENSITY_PATH, MAX_ITEM_PATHS, MAX_ITEMS
from service.stores import Stores, StoresDependency
from service.work.catalogue import calibration_of, checkpoint_step, describe, parse_model
from service.work.exchange import REPLY_HEADERS, addressed, ask, model_at, reply_headers, require_sampler
from service.work.items import from_files, from_lists, to_npy
from worker.queue.tasks import SCORE, DensityReply, DensityRequest

router = APIRouter(tags=["densities"])

JSON, MULTIPART = "application/json", "multipart/form-data"
_REMEDY = "send fewer items or paths"
_SCHEMA = {"$ref": "#/components/schemas/LogDensityRequestBody"}
_FORM_SCHEMA = {
    "type": "object",
    "required": ["model", "files"],
    "properties": {
        "model": {"type": "string", "description": "Id of a model, or `id@step`"},
        "files": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "PNG or JPEG images of the model's size, one an item (pixels v become v/127.5 − 1), or one "
            ".npy file of shape (N, …), of which uint8 are pixels too",
        },
        "path": {"type": "boolean"},
        "num_paths": {"type": "integer"},
        "seed": {"type": "integer"},
    },
}


T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Scoring:
    """A checked request for log densities, with everything decided that the client left open."""

    request: DensityRequest
    x: FloatArray


@router.post(
    LOG_DENSITY_PATH,
    operation_id="log_density",
    summary="log densities of data under a model",
    response_class=Response,
    responses={
        200: {
            "description": "Per item and for the batch, in nats",
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/LogDensityBody"}}},
            "headers": {
                "X-Seed": {"description": "With `path`: the seed used", "schema": {"type": "integer"}},
                **REPLY_HEADERS,
            },
        },
        **documented(404, 409, 415, 429, 504),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": _SCHEMA},
                MULTIPART: {"schema": _FORM_SCHEMA, "example": {"model": MODEL_ID, "files": ["(digit.png)"]}},
            },
        }
    },
)
async def log_density(request: Request, stores: StoresDependency) -> Response:
    """Numbers as JSON, or files in a form. The checkpoint must be calibrated; 409 names the call that does it."""
    content_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if content_type == JSON:
        scoring = await run_in_threadpool(_from_json, stores, await request.body())
    elif content_type == MULTIPART:
        async with request.form(max_files=MAX_ITEMS + 1, max_fields=16) as form:
            files = [
                (one.filename or "", await one.read()) for one in form.getlist("files") if isinstance(one, UploadFile)
            ]
            scoring = await run_in_threadpool(_from_form, stores, form, files)
    else:
        raise Problem(415, "unsupported-media-type", f"the body is {content_type}; send {JSON} or {MULTIPART}")
    array = to_npy(scoring.x)
    reply = await ask(stores, request, SCORE, scoring.request, remedy=_REMEDY, array=array)
    return await run_in_threadpool(_answer, reply, scoring.request.num_paths, request)


def _from_json(stores: Stores, body: bytes) -> Scoring:
    options = _validated(LogDensityRequestBody, body)
    model_id, step, calibration = _calibrated(stores, options.model)
    return _scoring(stores, options, model_id, step, from_lists(options.x, calibration.event_shape))


def _from_form(stores: Stores, form: FormData, files: list[tuple[str, bytes]]) -> Scoring:
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    options = _validated(LogDensityOptions, fields)
    model_id, step, calibration = _calibrated(stores, options.model)
    return _scoring(stores, options, model_id, step, from_files(files, calibration.event_shape))


def _validated(kind: type[T], values: bytes | dict[str, str]) -> T:
    """The values as a body of that kind. Raises RequestValidationError, whose fields are those of the body."""
    try:
        return kind.model_validate_json(values) if isinstance(values, bytes) else kind.model_validate(values)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(errors) from None


def _calibrated(stores: Stores, model: str) -> tuple[str, int, CalibrationBody]:
    """(model id, step, calibration) of a checkpoint that can answer. Raises Problem 404, 409 or 422."""
    model_id, step = parse_model(model)
    describe(stores, model_id)
    step = checkpoint_step(stores, model_id, step)
    return model_id, step, calibration_of(stores, model_id, step)


def _scoring(stores: Stores, options: LogDensityOptions, model_id: str, step: int, x: FloatArray) -> Scoring:
    """Refuse now what a sampler would refuse later. Raises Problem."""
    num_paths = options.num_paths if options.path else 0
    if len(x) * num_paths > MAX_ITEM_PATHS:
        raise field_problem(
            ["body", "num_paths"],
            f"{num_paths} paths for {len(x)} items are more than {MAX_ITEM_PATHS} in all; "
            "send fewer of either, or leave `path` out",
        )
    require_sampler(stores)
    request = DensityRequest(
        **addressed(stores, model_id, step),
        num_paths=num_paths,
        seed=random_seed() if options.seed is None else options.seed,
    )
    return Scoring(request=request, x=x)


def _answer(reply: DensityReply, num_paths: int, connection: Request) -> Response:
    began_at = time.perf_counter()
    calibration = CalibrationBody.model_validate(reply.calibration)
    body = LogDensityBody(
        model=model_at(reply),
        level=0,
        blur_std=calibration.blur_std,
        log_z=calibration.log_z,
        std_error=calibration.log_z.std_error,
        converged=calibration.converged,
        verdict=calibration.verdict,
        explanation=calibration.explanation,
        seed=reply.seed if num_paths else None,
        num_paths=num_paths or None,
        items=_items(reply),
    )
    content = body.model_dump_json().encode()
    headers = {**({"X-Seed": str(reply.seed)} if num_paths else {}), **reply_headers(reply, began_at, connection)}
    return Response(content, media_type=JSON, headers=headers)


def _items(reply: DensityReply) -> list[ItemDensityBody]:
    columns = {name: array.tolist() for name, array in reply.arrays().items()}
    rows = zip(*columns.values(), strict=True)
    return [ItemDensityBody(**dict(zip(columns, map(_finite, row), strict=True))) for row in rows]


def _finite(value: float) -> Any:
    """The value, or None for one that JSON cannot write: the spread of a single path."""
    return value if math.isfinite(value) else None

"""POST /log-density: what a client sends, as an array, to a sampler that knows log Z; the answer as JSON."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from model.event_kinds.pixels import FloatArray
from service.bodies.fields import random_seed
from service.bodies.models import CalibrationBody
from service.bodies.sampling import ItemDensityBody, LogDensityBody, LogDensityOptions, LogDensityRequestBody
from service.http.errors import documented, field_problem
from service.settings import LOG_DENSITY_PATH, MAX_ITEM_PATHS
from service.stores import Stores, StoresDependency
from service.work.catalogue import calibration_of, checkpoint_step, describe, parse_model
from service.work.exchange import REPLY_HEADERS, addressed, ask, model_at, reply_headers, require_sampler
from service.work.items import to_npy
from service.work.posted import JSON, Posted, posted, request_body
from worker.queue.tasks import SCORE, DensityReply, DensityRequest

router = APIRouter(tags=["densities"])

_REMEDY = "send fewer items or paths"


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
    openapi_extra=request_body(LogDensityRequestBody, path="boolean", num_paths="integer", seed="integer"),
)
async def log_density(request: Request, stores: StoresDependency) -> Response:
    """Numbers as JSON, or files in a form. The checkpoint must be calibrated; 409 names the call that does it."""
    found = await posted(request, LogDensityOptions, LogDensityRequestBody)
    scoring = await run_in_threadpool(_scoring, stores, found)
    array = to_npy(scoring.x)
    reply = await ask(stores, request, SCORE, scoring.request, remedy=_REMEDY, array=array)
    return await run_in_threadpool(_answer, reply, scoring.request.num_paths, request)


def _calibrated(stores: Stores, model: str) -> tuple[str, int, CalibrationBody]:
    """(model id, step, calibration) of a checkpoint that can answer. Raises Problem 404, 409 or 422."""
    model_id, step = parse_model(model)
    describe(stores, model_id)
    step = checkpoint_step(stores, model_id, step)
    return model_id, step, calibration_of(stores, model_id, step)


def _scoring(stores: Stores, found: Posted[LogDensityOptions]) -> Scoring:
    """Refuse now what a sampler would refuse later. Raises Problem."""
    options = found.options
    model_id, step, calibration = _calibrated(stores, options.model)
    x = found.items(calibration.event_shape)
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

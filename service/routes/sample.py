"""POST /sample: hands a request to the samplers, waits for the reply, and answers in the form the client accepts."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Response
from starlette.concurrency import run_in_threadpool

from service.accept import preferred
from service.errors import Problem, documented, field_problem, not_acceptable
from service.images import FloatArray, encode_grid, encode_npy, encode_png, encode_zip, is_image
from service.routes.models import describe
from service.schemas import SampleBody, SampleLevelBody, SampleRequestBody, random_seed
from service.stores import Stores, StoresDependency
from worker.broker import send_sample
from worker.ids import new_id
from worker.messages import SAMPLE_QUEUE, ReplyChannel, ReplyTimeout, SampleReply, SampleRequest
from worker.presence import live_workers

router = APIRouter(tags=["sampling"])

PNG, ZIP, JSON, NPY = "image/png", "application/zip", "application/json", "application/x-npy"
IMAGE_FORMS = (PNG, ZIP, JSON, NPY)
VECTOR_FORMS = (JSON, NPY)
_STATUS_OF_ERROR = {
    "unknown_model": 404,
    "no_checkpoint": 409,
    "bad_request": 422,
    "deadline_passed": 504,
    "storage_unavailable": 503,
    "internal": 500,
}
_RETRY_AFTER_S = "5"


@dataclass(frozen=True)
class Drawing:
    """What a client asked for, with everything that was left open decided."""

    body: SampleRequestBody
    model_id: str
    step: int | None
    seed: int

    def message(self, timeout_s: float) -> SampleRequest:
        """The request for the samplers."""
        return SampleRequest(
            request_id=new_id(),
            model_id=self.model_id,
            step=self.step,
            num_images=self.body.num_images,
            seed=self.seed,
            num_steps=self.body.steps,
            noise_scale=self.body.noise_scale,
            levels=tuple(sorted(set(self.body.levels), reverse=True)),
            deadline=time.time() + timeout_s,
        )


@router.post(
    "/sample",
    operation_id="sample",
    summary="Draw samples from a model",
    response_class=Response,
    responses={
        200: {
            "description": "A PNG (one image, or a grid; with `levels` one row per sample, noisiest first), a zip of "
            "PNGs and manifest.json, JSON, or .npy float32 of shape (N, …) (with `levels` (levels + 1, N, …))",
            "content": {
                PNG: {},
                ZIP: {},
                JSON: {"schema": {"$ref": "#/components/schemas/SampleBody"}},
                NPY: {},
            },
            "headers": {
                "X-Seed": {"description": "The seed used", "schema": {"type": "integer"}},
                "X-Model": {"description": "`id@step` of the checkpoint used", "schema": {"type": "string"}},
                "X-NFE": {"description": "Energy-gradient evaluations per sample", "schema": {"type": "integer"}},
                "Server-Timing": {"description": "queue, load, compute, encode", "schema": {"type": "string"}},
            },
        },
        **documented(404, 406, 409, 504),
    },
)
async def sample(
    body: SampleRequestBody,
    stores: StoresDependency,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """By `Accept`: image/png, application/zip, application/json or application/x-npy; the last two for vectors."""
    if preferred(accept, IMAGE_FORMS) is None:
        raise not_acceptable(IMAGE_FORMS)
    drawing = await run_in_threadpool(_prepare, stores, body)
    reply = await _ask(stores, drawing)
    return await run_in_threadpool(_answer, drawing, reply, accept)


def _prepare(stores: Stores, body: SampleRequestBody) -> Drawing:
    """Refuse now what a sampler would refuse later. Raises Problem."""
    model_id, step = _parse_model(body.model)
    config = describe(stores, model_id).get("config") or {}
    _require_checkpoint(stores, model_id, step)
    _require_levels(body.levels, config)
    if SAMPLE_QUEUE not in live_workers(stores.records.redis):
        raise _no_sampler("no sampler gives signs of life; start one, GET /readyz shows what is missing", 503)
    seed = random_seed() if body.seed is None else body.seed
    return Drawing(body=body, model_id=model_id, step=step, seed=seed)


def _parse_model(text: str) -> tuple[str, int | None]:
    """`id` or `id@step`."""
    model_id, at, step = text.partition("@")
    if not at:
        return model_id, None
    if not (step.isascii() and step.isdecimal() and len(step) < 10):
        raise field_problem(["body", "model"], f"{text!r} is not a model; expected an id, or id@step with a number")
    return model_id, int(step)


def _require_checkpoint(stores: Stores, model_id: str, step: int | None) -> None:
    steps = [checkpoint.step for checkpoint in stores.artifacts.list_checkpoints(model_id)]
    if not steps:
        raise Problem(
            409, "no-checkpoint", f"model {model_id} has no checkpoint yet; follow its job until the first is committed"
        )
    if step is not None and step not in steps:
        some = ", ".join(map(str, steps[-10:]))
        raise Problem(404, "unknown-checkpoint", f"model {model_id} has no checkpoint of step {step}; there are {some}")


def _require_levels(levels: Sequence[int], config: Mapping[str, Any]) -> None:
    num_levels = config.get("schedule", {}).get("num_levels")
    if levels and num_levels is not None and max(levels) > num_levels:
        raise field_problem(
            ["body", "levels"], f"level {max(levels)} does not exist; this model has 0 to {num_levels}, pure noise"
        )


async def _ask(stores: Stores, drawing: Drawing) -> SampleReply:
    """Queue the request and wait. Raises Problem when there is no reply in time, or one that says why not."""
    timeout_s = stores.settings.sample_timeout_s
    message = drawing.message(timeout_s)
    await run_in_threadpool(send_sample, stores.broker, message)
    try:
        reply = await ReplyChannel(message.request_id).wait(stores.redis, timeout_s)
    except ReplyTimeout:
        raise _no_sampler(
            f"no sampler answered within {timeout_s:g} s; ask for fewer images or steps, or add samplers", 504
        ) from None
    if not reply.ok or reply.x is None:
        error = reply.error or "internal"
        raise Problem(_STATUS_OF_ERROR[error], error.replace("_", "-"), reply.detail or "the sampler gave no reason")
    return reply


def _no_sampler(detail: str, status: int) -> Problem:
    return Problem(status, "no-sampler", detail, headers={"Retry-After": _RETRY_AFTER_S})


def _answer(drawing: Drawing, reply: SampleReply, accept: str | None) -> Response:
    """The reply in the form that is asked for, with where it came from in the headers."""
    assert reply.x is not None
    offered = IMAGE_FORMS if is_image(reply.x.shape[1:]) else VECTOR_FORMS
    form = preferred(accept, offered)
    if form is None:
        raise not_acceptable(offered, "this model makes vectors, not images; ")
    began_at = time.perf_counter()
    content = _ENCODERS[form](reply.x, drawing, reply)
    timings = reply.timings
    durations_s = {
        "queue": timings.queue_s,
        "load": timings.load_s,
        "compute": timings.compute_s,
        "encode": time.perf_counter() - began_at,
    }
    headers = {
        "X-Seed": str(reply.seed),
        "X-Model": _model_at(reply),
        "X-NFE": str(reply.gradient_evaluations),
        "Server-Timing": ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in durations_s.items()),
        "Vary": "Accept",
    }
    return Response(content, media_type=form, headers=headers)


def _model_at(reply: SampleReply) -> str:
    return f"{reply.model_id}@{reply.step}"


def _levels(reply: SampleReply) -> list[tuple[int, FloatArray]]:
    """Noisiest first."""
    return sorted(reply.levels.items(), reverse=True)


def _stacked(x: FloatArray, reply: SampleReply) -> FloatArray:
    """(levels + 1, N, *event): the way from noise to the samples."""
    return np.stack([*(level for _, level in _levels(reply)), x])


def _to_png(x: FloatArray, drawing: Drawing, reply: SampleReply) -> bytes:
    scale = drawing.body.scale
    if reply.levels:
        path = _stacked(x, reply)
        by_sample = np.swapaxes(path, 0, 1).reshape(-1, *x.shape[1:])
        return encode_grid(by_sample, scale=scale, num_columns=len(path))
    return encode_png(x[0], scale=scale) if len(x) == 1 else encode_grid(x, scale=scale)


def _to_zip(x: FloatArray, drawing: Drawing, reply: SampleReply) -> bytes:
    manifest = {
        "model": _model_at(reply),
        "seed": reply.seed,
        "num_images": len(x),
        "steps": drawing.body.steps,
        "noise_scale": drawing.body.noise_scale,
        "gradient_evaluations": reply.gradient_evaluations,
    }
    folders = {f"level-{level:04d}/": images for level, images in _levels(reply)}
    return encode_zip({"": x, **folders}, manifest, scale=drawing.body.scale)


def _to_json(x: FloatArray, drawing: Drawing, reply: SampleReply) -> bytes:
    scale = drawing.body.scale
    body = SampleBody(
        model=_model_at(reply),
        seed=reply.seed,
        shape=list(x.shape),
        gradient_evaluations=reply.gradient_evaluations,
        levels=[SampleLevelBody(level=level, **_as_json(values, scale)) for level, values in _levels(reply)],
        **_as_json(x, scale),
    )
    return body.model_dump_json(exclude_none=True).encode()


def _as_json(x: FloatArray, scale: int) -> dict[str, Any]:
    if is_image(x.shape[1:]):
        return {"images": [base64.b64encode(encode_png(image, scale=scale)).decode() for image in x]}
    return {"values": x.tolist()}


def _to_npy(x: FloatArray, _drawing: Drawing, reply: SampleReply) -> bytes:
    return encode_npy(_stacked(x, reply) if reply.levels else x)


_ENCODERS = {PNG: _to_png, ZIP: _to_zip, JSON: _to_json, NPY: _to_npy}

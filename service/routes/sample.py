"""POST /sample: hands a request to the samplers, waits for the reply, and answers in the form the client accepts."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Response
from starlette.concurrency import run_in_threadpool

from service.accept import preferred
from service.errors import documented, field_problem, not_acceptable
from service.exchange import REPLY_HEADERS, ask, model_at, reply_headers, require_sampler
from service.images import FloatArray, encode_grid, encode_npy, encode_png, encode_zip, is_image
from service.routes.models import checkpoint_step, describe, parse_model
from service.schemas import SampleBody, SampleLevelBody, SampleRequestBody, random_seed
from service.stores import Stores, StoresDependency
from worker.ids import new_id
from worker.messages import SampleReply, SampleRequest

router = APIRouter(tags=["sampling"])

PNG, ZIP, JSON, NPY = "image/png", "application/zip", "application/json", "application/x-npy"
IMAGE_FORMS = (PNG, ZIP, JSON, NPY)
VECTOR_FORMS = (JSON, NPY)


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
                **REPLY_HEADERS,
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
    message = drawing.message(stores.settings.sample_timeout_s)
    reply = await ask(stores, message, SampleReply, "ask for fewer images or steps")
    return await run_in_threadpool(_answer, drawing, reply, accept, stores.settings.max_pixels)


def _prepare(stores: Stores, body: SampleRequestBody) -> Drawing:
    """Refuse now what a sampler would refuse later. Raises Problem."""
    model_id, step = parse_model(body.model)
    config = describe(stores, model_id).get("config") or {}
    checkpoint_step(stores, model_id, step)
    _require_levels(body.levels, config)
    _require_little_work(body, config, stores.settings.max_chain_steps)
    require_sampler(stores)
    seed = random_seed() if body.seed is None else body.seed
    return Drawing(body=body, model_id=model_id, step=step, seed=seed)


def _require_levels(levels: Sequence[int], config: Mapping[str, Any]) -> None:
    num_levels = config.get("schedule", {}).get("num_levels")
    if levels and num_levels is not None and max(levels) > num_levels:
        raise field_problem(
            ["body", "levels"], f"level {max(levels)} does not exist; this model has 0 to {num_levels}, pure noise"
        )


def _require_little_work(body: SampleRequestBody, config: Mapping[str, Any], limit: int) -> None:
    num_levels = config.get("schedule", {}).get("num_levels", 1)
    num_steps = config.get("sampling", {}).get("num_steps") if body.steps is None else body.steps
    work = body.num_images * num_levels * (num_steps or 1)
    if work > limit:
        raise field_problem(
            ["body", "num_images"],
            f"{body.num_images} images × {num_levels} noise levels × {num_steps} chain steps are {work} steps, "
            f"more than the {limit} of one request; ask for fewer images or steps",
        )


def _require_few_pixels(drawing: Drawing, reply: SampleReply, limit: int) -> None:
    """Magnified pictures are the largest thing that a small request can ask for."""
    assert reply.x is not None
    scale = drawing.body.scale
    num_pixels = (1 + len(reply.levels)) * len(reply.x) * math.prod(reply.x.shape[-2:]) * scale**2
    if num_pixels > limit:
        raise field_problem(
            ["body", "scale"],
            f"the pictures would have {num_pixels} pixels, more than the {limit} of one answer; "
            "ask for a smaller scale, or fewer images or levels",
        )


def _answer(drawing: Drawing, reply: SampleReply, accept: str | None, max_pixels: int) -> Response:
    """The reply in the form that is asked for, with where it came from in the headers."""
    assert reply.x is not None
    offered = IMAGE_FORMS if is_image(reply.x.shape[1:]) else VECTOR_FORMS
    form = preferred(accept, offered)
    if form is None:
        raise not_acceptable(offered, "this model makes vectors, not images; ")
    if offered is IMAGE_FORMS and form != NPY:
        _require_few_pixels(drawing, reply, max_pixels)
    began_at = time.perf_counter()
    content = _ENCODERS[form](reply.x, drawing, reply)
    headers = {"X-Seed": str(reply.seed), **reply_headers(reply, began_at), "Vary": "Accept"}
    return Response(content, media_type=form, headers=headers)


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
        "model": model_at(reply),
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
        model=model_at(reply),
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

"""POST /sample: hands a request to the samplers, waits for the reply, and answers in the form the client accepts.

As `text/event-stream` every level comes as it is reached, and the samples last.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from model.composition import Composition, in_turn
from model.config import ChainConfig, KernelKind, SamplingConfig, sampling_kernel
from model.event_kinds.pixels import FloatArray
from service.bodies.fields import random_seed
from service.bodies.sampling import SampleBody, SampleLevelBody, SampleRequestBody
from service.http.accept import preferred
from service.http.errors import Problem, documented, field_problem, not_acceptable
from service.http.examples import BINARY
from service.stores import Stores, StoresDependency
from service.work.catalogue import checkpoint_step, describe, parse_model
from service.work.exchange import REPLY_HEADERS, Exchange, addressed, ask, model_at, reply_headers, require_sampler
from service.work.images import (
    by_label,
    columns_by_label,
    encode_grid,
    encode_npy,
    encode_png,
    encode_zip,
    is_image,
)
from service.work.labels import named, read_labels
from service.work.quality import Chosen, chosen
from worker.queue.tasks import DRAW, SampleReply, SampleRequest

router = APIRouter(tags=["sampling"])
_REMEDY = "ask for fewer images or steps"
_LONGEST_LABELS = 4000
"""A header with more characters of labels might be refused on its way."""

PNG, ZIP, JSON, NPY = "image/png", "application/zip", "application/json", "application/x-npy"
SSE = "text/event-stream"
IMAGE_FORMS = (PNG, ZIP, JSON, NPY)
VECTOR_FORMS = (JSON, NPY)


@dataclass(frozen=True)
class Drawing:
    """A checked request for samples, with everything decided that the client left open."""

    body: SampleRequestBody
    model_id: str
    step: int
    seed: int
    num_levels: int
    how: Chosen
    classes: tuple[str, ...]
    own_kernel: KernelKind
    """By which the model's chains move unless something else is asked."""
    labels: tuple[Composition, ...]
    """What is asked of the samples' labels, which take it in turn; empty for a model without classes."""

    def message(self, stores: Stores, *, stream: bool) -> SampleRequest:
        """The request for the samplers: the body's fields as they are; a stream shows all levels unless some are named.

        The form of the answer, `scale`, is no concern of the samplers.
        """
        levels = self.body.levels or (range(self.num_levels + 1) if stream else [])
        decided = {"seed": self.seed, "levels": sorted(set(levels), reverse=True), "stream": stream}
        decided |= {"labels": self.labels, "start": self.how.start, "num_steps": self.how.num_steps}
        asked = self.body.model_dump(exclude={"model", "scale", "guidance", "quality", "steps"})
        return SampleRequest.model_validate(addressed(stores, self.model_id, self.step) | asked | decided)

    def told(self) -> dict[str, Any]:
        """What JSON and manifests say of each sample's label; nothing for a model without classes."""
        if not self.labels:
            return {}
        labels = named([in_turn(self.labels, index) for index in range(self.body.num_images)], self.classes)
        return {"labels": labels, "guidance": self.guidance}

    @property
    def guidance(self) -> float:
        """The guidance of the labels."""
        return max((one.guidance for one in self.labels), default=0.0)

    def headers(self, kernel: KernelKind | None) -> dict[str, str]:
        """What the headers say of how the samples were drawn; labels that are too long for one are left out."""
        found = {"X-Seed": str(self.seed), "X-Precision": self.body.precision, "Vary": "Accept"}
        found["X-Quality"] = self.how.quality
        if kernel is not None:
            found["X-Kernel"] = kernel
        if self.labels:
            found["X-Guidance"] = f"{self.guidance:g}"
            labels = json.dumps(named(self.labels, self.classes)[: self.body.num_images], separators=(",", ":"))
            if len(labels) <= _LONGEST_LABELS:
                found["X-Labels"] = labels
        return found

    def note(self, kernel: KernelKind | None) -> str | None:
        """Why the chains moved by another kernel than the model's own; None where they did not."""
        if kernel is None or kernel == self.own_kernel:
            return None
        if self.body.adjusted is not None:
            return f"the chains moved by {kernel} in place of the model's own {self.own_kernel}, as `adjusted` asked"
        return (
            f"the chains moved by {kernel}, with a Metropolis test of each step, in place of the model's own "
            f"{self.own_kernel}: unadjusted chains do not draw from a product of labels. `adjusted`: false leaves the "
            "test out"
        )


@router.post(
    "/sample",
    operation_id="sample",
    summary="Draw samples from a model",
    response_class=Response,
    responses={
        200: {
            "description": "A PNG (one image, or a grid; with `levels` one row per sample, noisiest first), a zip of "
            "PNGs and manifest.json, JSON, or .npy float32 of shape (N, …) (with `levels` (levels + 1, N, …)). As "
            "text/event-stream: events `level` (a SampleLevelBody) as levels are reached, then `result` (a SampleBody) "
            "or `problem`",
            "content": {
                PNG: BINARY,
                ZIP: BINARY,
                JSON: {"schema": {"$ref": "#/components/schemas/SampleBody"}},
                NPY: BINARY,
                SSE: {
                    "schema": {"type": "string"},
                    "example": 'event: level\ndata: {"level":14,"images":["iVBORw0KGgo…"]}\n\n',
                },
            },
            "headers": {
                "X-Seed": {"description": "The seed used", "schema": {"type": "integer"}},
                "X-Precision": {"description": "Of the network's arithmetic", "schema": {"type": "string"}},
                "X-Quality": {
                    "description": "Whose settings, as in SampleBody",
                    "schema": {"type": "string"},
                },
                "X-Kernel": {"description": "By which the chains moved", "schema": {"type": "string"}},
                "X-Labels": {
                    "description": "As JSON, what was asked of the samples' labels, which took it in turn; absent for "
                    "a model without classes, and beyond 4,000 characters",
                    "schema": {"type": "string"},
                },
                "X-Guidance": {"description": "Of the labels", "schema": {"type": "number"}},
                **REPLY_HEADERS,
            },
        },
        **documented(404, 406, 409, 429, 504),
    },
)
async def sample(
    body: SampleRequestBody,
    stores: StoresDependency,
    connection: Request,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """By `Accept`: image/png, application/zip, application/json, application/x-npy or text/event-stream; no pictures
    of vectors."""
    form = preferred(accept, (*IMAGE_FORMS, SSE))
    if form is None:
        raise not_acceptable((*IMAGE_FORMS, SSE))
    drawing = await run_in_threadpool(_prepare, stores, body)
    message = drawing.message(stores, stream=form == SSE)
    if form == SSE:
        exchange = Exchange(stores, DRAW, message, remedy=_REMEDY)
        return await _stream(drawing, exchange, connection, stores.settings.max_pixels)
    reply = await ask(stores, connection, DRAW, message, remedy=_REMEDY)
    return await run_in_threadpool(_answer, drawing, reply, accept, stores.settings.max_pixels, connection)


async def _stream(
    drawing: Drawing, exchange: Exchange[SampleRequest, SampleReply], connection: Request, max_pixels: int
) -> Response:
    """The first reply is waited for, so that a refusal is an answer of its own and not a stream."""
    try:
        await exchange.send()
        first = await exchange.next_reply(connection)
        for x in first.levels.values():
            if is_image(x.shape[1:]):
                _require_few_pixels(drawing, x, 1 + drawing.num_levels, max_pixels)
    except BaseException:
        await exchange.close()
        raise
    # X-Accel-Buffering: a proxy must hand each event on as it comes.
    headers = {"X-Model": model_at(first), **drawing.headers(first.kernel)}
    headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return EventSourceResponse(_events(drawing, exchange, first, connection), headers=headers)


async def _events(
    drawing: Drawing, exchange: Exchange[SampleRequest, SampleReply], reply: SampleReply, connection: Request
) -> AsyncIterator[bytes]:
    try:
        while not reply.is_last:
            yield await run_in_threadpool(_level_event, drawing, reply)
            reply = await exchange.next_reply(connection)
        yield await run_in_threadpool(_result_event, drawing, reply)
    except Problem as problem:
        yield format_sse_event(data_str=problem.response("/sample").body.decode(), event="problem")  # type: ignore[union-attr]
    finally:
        await exchange.close()


def _level_event(drawing: Drawing, reply: SampleReply) -> bytes:
    [(level, x)] = reply.levels.items()
    body = SampleLevelBody(level=level, **_as_json(x, drawing.body.scale))
    return format_sse_event(data_str=body.model_dump_json(exclude_none=True), event="level", id=str(level))


def _result_event(drawing: Drawing, reply: SampleReply) -> bytes:
    """The event of the samples, without the levels, which were sent before."""
    assert reply.x is not None
    body = _to_json(reply.x, drawing, reply.model_copy(update={"levels": {}}))
    return format_sse_event(data_str=body.decode(), event="result")


def _prepare(stores: Stores, body: SampleRequestBody) -> Drawing:
    """Refuse now what a sampler would refuse later. Raises Problem."""
    model_id, step = parse_model(body.model)
    description = describe(stores, model_id)
    config, classes = description.get("config") or {}, tuple(description.get("classes") or ())
    step = checkpoint_step(stores, model_id, step)
    num_levels = int(config.get("schedule", {}).get("num_levels", 0))
    _require_levels(body.levels, num_levels)
    labels = read_labels(body.labels, body.guidance, classes, body.num_images)
    is_plain = body.adjusted is None and not any(one.is_product for one in labels)
    how = chosen(stores, model_id, step, quality=body.quality, steps=body.steps, is_plain=is_plain)
    _require_little_work(body, config, how.num_steps, stores.settings.max_chain_steps)
    require_sampler(stores)
    return Drawing(
        body=body,
        model_id=model_id,
        step=step,
        seed=random_seed() if body.seed is None else body.seed,
        num_levels=num_levels,
        how=how,
        classes=classes,
        own_kernel=_own_kernel(config),
        labels=labels,
    )


def _own_kernel(config: Mapping[str, Any]) -> KernelKind:
    """The kernel by which a stored configuration has samples drawn."""
    chain, sampling = config.get("chain", {}), config.get("sampling", {})
    own = ChainConfig(kernel=chain.get("kernel", ChainConfig.kernel), target_acceptance=None)
    return sampling_kernel(own, SamplingConfig(adjusted=sampling.get("adjusted")))


def _require_levels(levels: Sequence[int], num_levels: int) -> None:
    if levels and max(levels) > num_levels:
        raise field_problem(
            ["body", "levels"], f"level {max(levels)} does not exist; this model has 0 to {num_levels}, pure noise"
        )


def _require_little_work(body: SampleRequestBody, config: Mapping[str, Any], num_steps: int | None, limit: int) -> None:
    num_levels = config.get("schedule", {}).get("num_levels", 1)
    num_steps = config.get("sampling", {}).get("num_steps") if num_steps is None else num_steps
    work = body.num_images * num_levels * (num_steps or 1)
    if work > limit:
        raise field_problem(
            ["body", "num_images"],
            f"{body.num_images} images × {num_levels} noise levels × {num_steps} chain steps are {work} steps, "
            f"more than the {limit} of one request; ask for fewer images or steps",
        )


def _require_few_pixels(drawing: Drawing, x: FloatArray, num_grids: int, limit: int) -> None:
    """Magnified pictures are the largest thing that a small request can ask for. Raises Problem."""
    num_pixels = num_grids * len(x) * math.prod(x.shape[-2:]) * drawing.body.scale**2
    if num_pixels > limit:
        raise field_problem(
            ["body", "scale"],
            f"the pictures would have {num_pixels} pixels, more than the {limit} of one answer; "
            "ask for a smaller scale, or fewer images or levels",
        )


def _answer(drawing: Drawing, reply: SampleReply, accept: str | None, max_pixels: int, connection: Request) -> Response:
    """The reply in the form that is asked for, with where it came from in the headers."""
    assert reply.x is not None
    offered = IMAGE_FORMS if is_image(reply.x.shape[1:]) else VECTOR_FORMS
    form = preferred(accept, offered)
    if form is None:
        raise not_acceptable(offered, "this model makes vectors, not images; ")
    if offered is IMAGE_FORMS and form != NPY:
        _require_few_pixels(drawing, reply.x, 1 + len(reply.levels), max_pixels)
    began_at = time.perf_counter()
    content = _ENCODERS[form](reply.x, drawing, reply)
    headers = drawing.headers(reply.kernel) | reply_headers(reply, began_at, connection)
    return Response(content, media_type=form, headers=headers)


def _levels(reply: SampleReply) -> list[tuple[int, FloatArray]]:
    """The levels of a reply, the noisiest first."""
    return sorted(reply.levels.items(), reverse=True)


def _stacked(x: FloatArray, reply: SampleReply) -> FloatArray:
    """(levels + 1, N, *event): the way from noise to the samples."""
    return np.stack([*(level for _, level in _levels(reply)), x])


def _to_png(x: FloatArray, drawing: Drawing, reply: SampleReply) -> bytes:
    scale, order = drawing.body.scale, by_label(len(x), len(drawing.labels))
    if reply.levels:
        path = _stacked(x, reply)[:, order]
        by_sample = np.swapaxes(path, 0, 1).reshape(-1, *x.shape[1:])
        return encode_grid(by_sample, scale=scale, num_columns=len(path))
    columns = columns_by_label(len(x), len(drawing.labels))
    return encode_png(x[0], scale=scale) if len(x) == 1 else encode_grid(x[order], scale=scale, num_columns=columns)


def _to_zip(x: FloatArray, drawing: Drawing, reply: SampleReply) -> bytes:
    manifest = {
        "model": model_at(reply),
        "seed": reply.seed,
        "num_images": len(x),
        "quality": drawing.how.quality,
        "start": drawing.how.start,
        "steps": drawing.how.num_steps,
        "noise_scale": drawing.body.noise_scale,
        **drawing.told(),
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
        quality=drawing.how.quality,
        start=drawing.how.start,
        steps=drawing.how.num_steps,
        levels=[SampleLevelBody(level=level, **_as_json(values, scale)) for level, values in _levels(reply)],
        kernel=reply.kernel,
        note=drawing.note(reply.kernel),
        **drawing.told(),
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

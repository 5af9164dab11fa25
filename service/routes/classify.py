"""POST /classify: what a client sends, as an array, to a sampler that has a conditional model; the answer as JSON."""

from __future__ import annotations

import math
import time

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from model.event_kinds.pixels import FloatArray
from service.bodies.sampling import ClassificationBody, ClassifyOptions, ClassifyRequestBody, ItemClassBody
from service.http.errors import Problem, documented
from service.settings import CLASSIFY_PATH
from service.stores import Stores, StoresDependency
from service.work.catalogue import checkpoint_step, describe, parse_model
from service.work.exchange import REPLY_HEADERS, addressed, ask, model_at, reply_headers, require_sampler
from service.work.items import to_npy
from service.work.posted import JSON, Posted, posted, request_body
from worker.queue.tasks import CLASSIFY, ClassifyReply, ClassifyRequest

router = APIRouter(tags=["labels"])

_NONE_BELOW = 0.01
_JUDGED = (
    "An item is none of these if its energy, whatever the class, is higher than that of 99 % of the model's held-out "
    "data. This says that it is unlike the data as a whole; some unlike data have low energies, and of data like the "
    "model's own one in a hundred is judged so too."
)
_NOT_KNOWN = (
    "Whether an item is none of these is not known: the checkpoint does not say how held-out data score. Train again, "
    "or see where its log density lies with POST /log-density."
)
_NOISY = (
    "Whether an item is none of these is not known: held-out data were scored without noise, and noise_std is not 0."
)


@router.post(
    CLASSIFY_PATH,
    operation_id="classify",
    summary="The class of data by a conditional model",
    response_class=Response,
    responses={
        200: {
            "description": "Probabilities of all classes per item, and whether the item is like any of them",
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/ClassificationBody"}}},
            "headers": REPLY_HEADERS,
        },
        **documented(404, 409, 415, 429, 504),
    },
    openapi_extra=request_body(ClassifyRequestBody, noise_std="number"),
)
async def classify(request: Request, stores: StoresDependency) -> Response:
    """Numbers as JSON, or files in a form, as POST /log-density takes them; models without classes get a 409."""
    found = await posted(request, ClassifyOptions, ClassifyRequestBody)
    order, x, classes = await run_in_threadpool(_order, stores, found)
    reply = await ask(stores, request, CLASSIFY, order, remedy="send fewer items", array=to_npy(x))
    return await run_in_threadpool(_answer, reply, classes, order.noise_std, request)


def _order(stores: Stores, found: Posted[ClassifyOptions]) -> tuple[ClassifyRequest, FloatArray, list[str]]:
    """Refuse now what a sampler would refuse later. Raises Problem."""
    model_id, step = parse_model(found.options.model)
    description = describe(stores, model_id)
    classes: list[str] = description.get("classes") or []
    if not classes:
        raise Problem(
            409,
            "not-conditional",
            f"model {model_id} knows no classes, since it was not trained with `conditional`; train one on labelled "
            "data",
        )
    step = checkpoint_step(stores, model_id, step)
    x = found.items(description["event_shape"])
    require_sampler(stores)
    request = ClassifyRequest(**addressed(stores, model_id, step), noise_std=found.options.noise_std)
    return request, x, classes


def _answer(reply: ClassifyReply, classes: list[str], noise_std: float, connection: Request) -> Response:
    began_at = time.perf_counter()
    body = ClassificationBody(
        model=model_at(reply),
        classes=classes,
        noise_std=noise_std,
        explanation=_JUDGED if reply.less_likely is not None else _NOISY if noise_std else _NOT_KNOWN,
        items=_items(reply, classes),
    )
    content = body.model_dump_json().encode()
    return Response(content, media_type=JSON, headers=reply_headers(reply, began_at, connection))


def _items(reply: ClassifyReply, classes: list[str]) -> list[ItemClassBody]:
    assert reply.probabilities is not None
    assert reply.energy is not None
    shares = [None] * len(reply.energy) if reply.less_likely is None else reply.less_likely.tolist()
    rows = zip(reply.probabilities, reply.energy.tolist(), shares, strict=True)
    return [
        ItemClassBody(
            label=classes[int(probabilities.argmax())],
            probability=_finite(float(probabilities.max())),
            probabilities=[_finite(one) for one in probabilities.tolist()],
            energy=_finite(energy),
            less_likely=None if share is None else _finite(share),
            none_of_these=None if share is None else not share >= _NONE_BELOW,
        )
        for probabilities, energy, share in rows
    ]


def _finite(value: float) -> float | None:
    """The value, or None for one that JSON cannot write."""
    return value if math.isfinite(value) else None

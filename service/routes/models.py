"""Models: what has been trained, which checkpoints are calibrated, and how samples and density look."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from service.bodies.models import CheckpointBody, ModelBody, ModelChangeRequest, ModelListBody
from service.http.errors import Problem, documented
from service.http.examples import BINARY
from service.stores import Stores, StoresDependency
from service.work.catalogue import calibration_of, checkpoint_step, describe, frontier_of
from service.work.exchange import REPLY_HEADERS, addressed, ask, reply_headers, require_sampler
from worker.jobs.deletion import Deletions, InUse
from worker.queue.tasks import MAP, DensityMapRequest
from worker.storage.artifacts import ArtifactMissing

router = APIRouter(prefix="/models", tags=["models"])

ModelId = Annotated[
    str, Path(description="Id of a model; GET /models lists them", examples=["01JD3Z6M3QMDE0N5K7C2B8F4GH"])
]


@router.get("", operation_id="list_models", summary="List models, newest first")
def list_models(stores: StoresDependency) -> ModelListBody:
    """All models."""
    found = []
    for model_id in stores.artifacts.list_models():
        with contextlib.suppress(Problem):  # it was deleted a moment ago
            found.append(_body(stores, model_id))
    return ModelListBody(models=found)


@router.get("/{model_id}", operation_id="get_model", summary="Look at a model", responses=documented(404))
def get_model(model_id: ModelId, stores: StoresDependency) -> ModelBody:
    """What the model was trained on and how, and its checkpoints."""
    return _body(stores, model_id)


@router.patch("/{model_id}", operation_id="change_model", summary="Name a model, and tag it", responses=documented(404))
def change_model(model_id: ModelId, request: ModelChangeRequest, stores: StoresDependency) -> ModelBody:
    """Two changes at once are made one after the other, and none is lost."""
    describe(stores, model_id)
    stores.artifacts.change_model(model_id, request.model_dump(exclude_unset=True))
    return _body(stores, model_id)


@router.delete(
    "/{model_id}",
    operation_id="delete_model",
    summary="Delete a model",
    status_code=204,
    responses=documented(404, 409),
)
def delete_model(model_id: ModelId, stores: StoresDependency) -> None:
    """Its checkpoints and calibrations go with it. Refused while a job that makes or uses it waits or runs."""
    describe(stores, model_id)
    try:
        Deletions(stores.records).delete_model(model_id)
    except InUse as error:
        told = ", ".join(error.job_ids[:3]) + (f" and {len(error.job_ids) - 3} more" if len(error.job_ids) > 3 else "")
        raise Problem(
            409, "model-in-use", f"model {model_id} is in use by {told}; POST /jobs/{{id}}/cancel first, or wait"
        ) from None


@router.get(
    "/{model_id}/density.png",
    operation_id="get_model_density",
    summary="The density of a 2-D model beside its data",
    response_class=Response,
    responses={
        200: {"content": {"image/png": BINARY}, "description": "A PNG", "headers": REPLY_HEADERS},
        **documented(404, 409, 429, 504),
    },
)
async def get_model_density(
    model_id: ModelId,
    stores: StoresDependency,
    connection: Request,
    step: Annotated[
        int | None, Query(ge=0, description="Of the checkpoint; the newest when absent", examples=[4400])
    ] = None,
) -> Response:
    """log density of a calibrated checkpoint over the frame of the data, in the data's units, and the data."""
    request = await run_in_threadpool(_density_map_request, stores, model_id, step)
    reply = await ask(stores, connection, MAP, request, remedy="try again later")
    headers = {"Cache-Control": "no-cache", **reply_headers(reply, time.perf_counter(), connection)}
    return Response(reply.png, media_type="image/png", headers=headers)


def _density_map_request(stores: Stores, model_id: str, step: int | None) -> DensityMapRequest:
    """Refuse now what a sampler would refuse later. Raises Problem."""
    describe(stores, model_id)
    step = checkpoint_step(stores, model_id, step)
    shape = calibration_of(stores, model_id, step).event_shape
    if shape != [2]:
        raise Problem(
            422,
            "not-planar",
            f"model {model_id} has events of shape ({', '.join(map(str, shape))}); a density can be drawn of vectors "
            "of two numbers only. POST /log-density scores others",
        )
    require_sampler(stores)
    return DensityMapRequest(**addressed(stores, model_id, step))


@router.get(
    "/{model_id}/samples.png",
    operation_id="get_model_samples",
    summary="A sample grid of its training",
    response_class=Response,
    responses={200: {"content": {"image/png": BINARY}, "description": "A PNG"}, **documented(404)},
)
def get_model_samples(
    model_id: ModelId,
    stores: StoresDependency,
    step: Annotated[
        int | None, Query(ge=0, description="As in the job's `sample` events; the newest when absent", examples=[1000])
    ] = None,
) -> Response:
    """A grid drawn while the model trained, always from the same noise; imported models have none."""
    job_id = describe(stores, model_id).get("job_id")
    try:
        if job_id is None:  # imported: no training drew one
            raise ArtifactMissing
        png = stores.artifacts.get_sample_grid(job_id, step)
    except ArtifactMissing:
        which = "sample grid yet" if step is None else f"sample grid of step {step}"
        raise Problem(
            404, "no-samples-yet", f"model {model_id} has no {which}; POST /sample draws from its checkpoints"
        ) from None
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-cache"})


def _body(stores: Stores, model_id: str) -> ModelBody:
    description = describe(stores, model_id)
    calibrated = set(stores.artifacts.list_calibrations(model_id))
    checkpoints = [
        CheckpointBody(
            step=one.step,
            size_bytes=one.size_bytes,
            committed_at=one.committed_at,
            calibration=calibration_of(stores, model_id, one.step) if one.step in calibrated else None,
            frontier=frontier_of(stores, model_id, one.step) if one.has_frontier else None,
        )
        for one in stores.artifacts.list_checkpoints(model_id)
    ]
    tags, classes = description.get("tags") or [], description.get("classes") or []
    known = {
        name: description.get(name)
        for name in ("name", "dataset", "job_id", "origin", "created_at", "config", "event_shape")
    }
    return ModelBody(id=model_id, checkpoints=checkpoints, tags=tags, classes=classes, **known)

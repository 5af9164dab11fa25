"""Models: what has been trained, and how it looks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from service.errors import Problem, documented
from service.schemas import CheckpointBody, ModelBody, ModelListBody
from service.stores import Stores, StoresDependency
from worker.artifacts import ArtifactMissing

router = APIRouter(prefix="/models", tags=["models"])

ModelId = Annotated[
    str, Path(description="Id of a model; GET /models lists them", examples=["01JD3Z6M3QMDE0N5K7C2B8F4GH"])
]


@router.get("", operation_id="list_models", summary="List models, newest first")
def list_models(stores: StoresDependency) -> ModelListBody:
    """All models."""
    return ModelListBody(models=[_body(stores, model_id) for model_id in stores.artifacts.list_models()])


@router.get("/{model_id}", operation_id="get_model", summary="Look at a model", responses=documented(404))
def get_model(model_id: ModelId, stores: StoresDependency) -> ModelBody:
    """What the model was trained on and how, and its checkpoints."""
    return _body(stores, model_id)


@router.get(
    "/{model_id}/samples.png",
    operation_id="get_model_samples",
    summary="The latest sample grid of its training",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "A PNG"}, **documented(404)},
)
def get_model_samples(model_id: ModelId, stores: StoresDependency) -> Response:
    """The grid drawn last while the model trained, always from the same noise."""
    job_id = describe(stores, model_id).get("job_id")
    try:
        png = stores.artifacts.get_sample_grid(str(job_id))
    except ArtifactMissing:
        raise Problem(
            404, "no-samples-yet", f"model {model_id} has no sample grid yet; POST /sample draws from its checkpoints"
        ) from None
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-cache"})


def describe(stores: Stores, model_id: str) -> dict[str, Any]:
    """model.json of a model. Raises Problem 404 saying how to list them."""
    try:
        return stores.artifacts.get_model(model_id)
    except ArtifactMissing:
        raise Problem(404, "unknown-model", f"there is no model {model_id}; GET /models lists them") from None


def _body(stores: Stores, model_id: str) -> ModelBody:
    description = describe(stores, model_id)
    checkpoints = [
        CheckpointBody(step=one.step, size_bytes=one.size_bytes, committed_at=one.committed_at)
        for one in stores.artifacts.list_checkpoints(model_id)
    ]
    known = {name: description.get(name) for name in ("name", "dataset", "job_id", "created_at", "config")}
    return ModelBody(id=model_id, checkpoints=checkpoints, **known)

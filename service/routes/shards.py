"""The routes that give what a bulk sampling left in storage: its manifest and its files."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response

from service.bodies.jobs import BulkManifestBody
from service.http.errors import Problem, documented
from service.http.examples import BINARY
from service.routes.jobs import JobId
from service.stores import Stores, StoresDependency
from worker.jobs.kinds import kind_of
from worker.storage.artifacts import ArtifactMissing
from worker.storage.shards import Manifest, get_manifest, get_shard

router = APIRouter(prefix="/jobs", tags=["jobs"])

_NPY = "application/x-npy"


@router.get(
    "/{job_id}/shards", operation_id="list_shards", summary="What a bulk sampling made", responses=documented(404, 409)
)
def list_shards(job_id: JobId, stores: StoresDependency) -> BulkManifestBody:
    """The manifest names the files in their order. It is there once all files are."""
    _require_shards(stores, job_id)
    try:
        return BulkManifestBody.model_validate(get_manifest(stores.artifacts, job_id).model_dump())
    except ArtifactMissing:
        detail = f"job {job_id} has not drawn all its samples; follow GET /jobs/{job_id}/events to its end"
        raise Problem(409, "not-finished", detail) from None


@router.get(
    "/{job_id}/shards/{index}.npy",
    operation_id="get_shard",
    summary="One file of a bulk sampling",
    response_class=Response,
    responses={200: {"content": {_NPY: BINARY}, "description": "A .npy file"}, **documented(404)},
)
def get_one_shard(
    job_id: JobId, index: Annotated[int, Path(ge=0, le=1_000_000, examples=[0])], stores: StoresDependency
) -> Response:
    """A file can be had as soon as it is stored, even while the job still runs."""
    _require_shards(stores, job_id)
    try:
        return Response(get_shard(stores.artifacts, job_id, index), media_type=_NPY)
    except ArtifactMissing:
        detail = f"job {job_id} has stored no shard {index}; GET /jobs/{job_id}/shards lists them at its end"
        raise Problem(404, "unknown-shard", detail) from None


def _require_shards(stores: Stores, job_id: str) -> None:
    """Check that the job leaves shards. Raises JobNotFound, or Problem 404 for a job of another kind."""
    record = stores.records.get(job_id)
    kind = kind_of(record.kind)
    if kind is None or kind.result is not Manifest:
        raise Problem(
            404, "unknown-shard", f"job {job_id} is no bulk sampling ({record.kind}); POST /jobs/sample starts one"
        )

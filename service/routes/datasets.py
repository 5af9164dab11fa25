"""The routes that upload, list, show and delete datasets. model.intake says what an upload may hold."""

from __future__ import annotations

import functools
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response

from model.presets import BUILT_IN_DATASETS
from service.bodies.datasets import DatasetBody, DatasetListBody
from service.http.errors import Problem, documented
from service.settings import DATASETS_PATH
from service.stores import Stores, StoresDependency
from service.work.uploads import IMAGE_SIZE_PATTERN, MAX_NAME, read_form, room_on_disk, store_upload
from worker.datasets.names import folder_datasets
from worker.jobs.record import JobStatus
from worker.storage.artifacts import ArtifactMissing
from worker.storage.datasets import StoredDataset, is_dataset_id

router = APIRouter(prefix=DATASETS_PATH, tags=["datasets"])

MULTIPART = "multipart/form-data"
_FORM_SCHEMA = {
    "type": "object",
    "required": ["file"],
    "additionalProperties": False,
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "description": "A .zip of images, of one size unless `image_size` is given, labelled where they lie in a "
            "folder for each class; a .npy or .npz array: (N, H, W[, C]) uint8 or (N, C, H, W) float images in "
            "[−1, 1], or (N, D) rows, in a .npz with `labels` or `y` (N,); or a .csv of numbers, with or without a "
            "line of headings",
        },
        "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME, "description": "A name for people"},
        "image_size": {
            "type": "string",
            "pattern": f"^{IMAGE_SIZE_PATTERN}$",
            "description": "A side, or height x width, in pixels: images are cropped around their centre to these "
            "proportions and resized",
            "examples": ["64", "48x64"],
        },
        "label_column": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_NAME,
            "description": "The column of a .csv that holds the class of each row and is no number of it, by heading, "
            "or by number from 1 where there are no headings; or the array of a .npz",
            "examples": ["species"],
        },
    },
}
_FORM = {"schema": _FORM_SCHEMA, "example": {"file": "(pictures.zip)", "name": "my pictures"}}

DatasetId = Annotated[
    str, Path(description="Id of a dataset; GET /datasets lists them", examples=["01JD3Z6M3Q9A0B1C2D3E4F5G6H"])
]


@router.post(
    "",
    operation_id="upload_dataset",
    summary="Upload data to train on",
    status_code=201,
    responses={
        200: {"model": DatasetBody, "description": "The same file was uploaded before: the dataset that exists"},
        **documented(400, 415, 507),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                MULTIPART: {"schema": _FORM_SCHEMA, "example": {"file": "(pictures.zip)", "name": "my pictures"}}
            },
        }
    },
)
async def upload_dataset(request: Request, response: Response, stores: StoresDependency) -> DatasetBody:
    """Everything is checked before anything is stored, and a refusal names what is wrong.

    POST /jobs/train takes the answer's id as `dataset`.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != MULTIPART:
        raise Problem(
            415, "unsupported-media-type", f"the body is {content_type[:80] or 'of no type'}; send {MULTIPART}"
        )
    with room_on_disk():
        async with request.form(max_files=1, max_fields=4) as form:
            work = functools.partial(store_upload, stores, read_form(form))
            stored, is_new = await to_thread.run_sync(work, limiter=stores.decoding)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"{DATASETS_PATH}/{stored.id}"
    return DatasetBody.uploaded(stored)


@router.get("", operation_id="list_datasets", summary="List datasets")
def list_datasets(stores: StoresDependency) -> DatasetListBody:
    """The datasets that a training can name, by name or id. It can also read `s3://` and `hf://` datasets."""
    return DatasetListBody(
        datasets=[
            *map(DatasetBody.uploaded, stores.datasets.list()),
            *(DatasetBody.built_in(name, summary) for name, summary in BUILT_IN_DATASETS.items()),
            *map(DatasetBody.in_folder, folder_datasets(stores.settings.datasets_dir)),
        ]
    )


@router.get("/{dataset_id}", operation_id="get_dataset", summary="Look at a dataset", responses=documented(404))
def get_dataset(dataset_id: DatasetId, stores: StoresDependency) -> DatasetBody:
    """Describes an uploaded or a built-in dataset."""
    if dataset_id in BUILT_IN_DATASETS:
        return DatasetBody.built_in(dataset_id, BUILT_IN_DATASETS[dataset_id])
    return DatasetBody.uploaded(_stored(stores, dataset_id))


@router.delete(
    "/{dataset_id}",
    operation_id="delete_dataset",
    summary="Delete an uploaded dataset",
    status_code=204,
    responses=documented(404, 409),
)
def delete_dataset(dataset_id: DatasetId, stores: StoresDependency) -> None:
    """The deletion is refused while a job that trains on the dataset waits or runs.

    Models that were trained on it stay, but their jobs cannot be resumed.
    """
    if dataset_id in BUILT_IN_DATASETS:
        raise Problem(409, "dataset-built-in", f"{dataset_id} comes with the program; only uploaded datasets go")
    stored = _stored(stores, dataset_id)
    if job_ids := _jobs_using(stores, stored.id):
        told = ", ".join(job_ids[:3]) + (f" and {len(job_ids) - 3} more" if len(job_ids) > 3 else "")
        raise Problem(409, "dataset-in-use", f"dataset {stored.id} is in use by {told}; cancel first, or wait")
    stores.datasets.delete(stored.id)


def _stored(stores: Stores, dataset_id: str) -> StoredDataset:
    try:
        if is_dataset_id(dataset_id):
            return stores.datasets.get(dataset_id)
    except ArtifactMissing:
        pass
    raise Problem(404, "unknown-dataset", f"there is no dataset {dataset_id[:40]}; GET {DATASETS_PATH} lists them")


def _jobs_using(stores: Stores, dataset_id: str) -> list[str]:
    """Return the ids of jobs that wait or run and name the dataset in their configuration."""
    found: list[str] = []
    for status in (JobStatus.queued, JobStatus.running):
        cursor: str | None = None
        while True:
            page = stores.records.list(status=status, cursor=cursor, limit=200)
            found += [job.id for job in page.records if job.spec.get("config", {}).get("dataset") == dataset_id]
            cursor = page.next_cursor
            if cursor is None:
                break
    return found

"""The routes of jobs: start one of a kind, look at it, follow, cancel and resume it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from model.config import CalibrationConfig, to_dict
from model.frontier import TuneConfig
from service.bodies.events import EventBody
from service.bodies.fields import random_seed
from service.bodies.jobs import (
    BulkSampleRequest,
    CalibrateRequest,
    JobBody,
    JobPageBody,
    ResumeRequest,
    TrainCheckBody,
    TrainRequest,
    TuneRequest,
)
from service.door.limits import JobSlot
from service.http.accept import preferred
from service.http.errors import Problem, documented, field_problem, not_acceptable
from service.http.preference import WaitDependency
from service.stores import Stores, StoresDependency
from service.work.catalogue import checkpoint_step, describe, parse_model
from service.work.configuration import training, with_steps
from service.work.labels import read_labels
from service.work.quality import chosen
from service.work.submission import SubmissionDependency, Wanted, job_body, making_a_job, queue
from worker.ids import ULID_PATTERN
from worker.jobs.deletion import Deletions
from worker.jobs.event import JobEvent
from worker.jobs.event_stream import follow_events
from worker.jobs.kinds import CalibrateSpec, JobKind, SampleSpec, TrainSpec, TuneSpec, kind_of
from worker.jobs.record import JobRecord, JobStatus

router = APIRouter(prefix="/jobs", tags=["jobs"])

_SSE = "text/event-stream"
_JSON_LINES = "application/jsonl"
_SSE_SCHEMA = {
    "type": "object",
    "description": "One event of the stream",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/EventBody"},
        },
    },
    "examples": [{"id": "1732392000000-0", "event": "step", "data": '{"id":"1732392000000-0","type":"step", …}'}],
}
_LINE = '{"id":"1732392000000-0","type":"step","at":"2026-11-24T09:30:00Z","data":{"step":20,"loss":0.4}}\n'
_FROM_THE_START = "0"

_JOB_ID = "01JD3Z6M3Q4R5S6T7V8W9X0Y1Z"
JobId = Annotated[str, Path(description="Id of a job; GET /jobs lists them", examples=[_JOB_ID])]

Cursor = Annotated[
    str | None,
    Query(description="`next_cursor` of the page before", pattern=ULID_PATTERN, examples=[_JOB_ID]),
]
LastEventId = Annotated[
    str,
    Header(
        description="Id of the last event received; the stream goes on after it",
        pattern=r"^\d+(-\d+)?$",
        examples=["1732392000000-0"],
    ),
]


@router.post("/train", operation_id="train", summary="Start a training job", **making_a_job(409))
async def train(request: TrainRequest, submission: SubmissionDependency) -> JobBody:
    """Checks the request, stores the job and queues it. `Location` is where to look at it; its events tell the rest."""

    def wanted() -> Wanted:
        asked = training(request, submission.stores.settings, submission.stores.artifacts)
        others = request.model_dump(include={"device", "num_gpus", "num_nodes", "keep_last", "keep_every"})
        return Wanted(spec=TrainSpec(config=asked.config, plan=asked.plan, **others))

    return await submission.answer(JobKind.train, request, wanted)


@router.post("/train/check", operation_id="check_training", summary="Check a training request without starting it")
def check_training(request: TrainRequest, stores: StoresDependency) -> TrainCheckBody:
    """The configuration that POST /jobs/train would train with, or the 422 that it would answer.

    Of preset `images`, `plan` says what is chosen from the data and why; the trainer adds the number of steps.
    """
    asked = training(request, stores.settings, stores.artifacts)
    return TrainCheckBody(config=to_dict(asked.config), plan=list(asked.reasons))


@router.post("/calibrate", operation_id="calibrate", summary="Estimate log Z of a checkpoint", **making_a_job(404, 409))
async def calibrate(request: CalibrateRequest, submission: SubmissionDependency) -> JobBody:
    """Annealed importance sampling from both sides, in rounds, until they meet; POST /log-density needs it."""

    def wanted() -> Wanted:
        model_id, step = _checkpoint(submission.stores, request.model)
        config = CalibrationConfig(**request.model_dump(include={field.name for field in fields(CalibrationConfig)}))
        return Wanted(spec=CalibrateSpec(config=config, step=step, device=request.device), model_id=model_id)

    return await submission.answer(JobKind.calibrate, request, wanted)


@router.post("/tune", operation_id="tune", summary="Measure what samples cost", **making_a_job(404, 409))
async def tune(request: TuneRequest, submission: SubmissionDependency) -> JobBody:
    """Draws by a handful of settings, compares with held-out data, and chooses `draft`, `standard` and `best`."""

    def wanted() -> Wanted:
        model_id, step = _checkpoint(submission.stores, request.model)
        config = TuneConfig(**request.model_dump(include={field.name for field in fields(TuneConfig)}))
        return Wanted(spec=TuneSpec(config=config, step=step, device=request.device), model_id=model_id)

    return await submission.answer(JobKind.tune, request, wanted)


@router.post(
    "/sample", operation_id="sample_in_bulk", summary="Draw many samples into storage", **making_a_job(404, 409)
)
async def sample_in_bulk(request: BulkSampleRequest, submission: SubmissionDependency) -> JobBody:
    """Shards of .npy, drawn by a trainer; GET /jobs/{id}/shards lists them when all are there."""

    def wanted() -> Wanted:
        stores = submission.stores
        model_id, step = _checkpoint(stores, request.model)
        labels = read_labels(request.labels, request.guidance, _classes(stores, model_id), request.num_images)
        is_plain = request.adjusted is None and not any(one.is_product for one in labels)
        how = chosen(stores, model_id, step, quality=request.quality, steps=request.steps, is_plain=is_plain)
        spec = SampleSpec(
            **request.model_dump(include={"num_images", "shard_images", "noise_scale", "adjusted", "device"}),
            labels=labels,
            step=step,
            seed=random_seed() if request.seed is None else request.seed,
            num_steps=how.num_steps,
            start=how.start,
        )
        return Wanted(spec=spec, model_id=model_id)

    return await submission.answer(JobKind.sample, request, wanted)


def _checkpoint(stores: Stores, text: str) -> tuple[str, int]:
    """(model id, step) of the checkpoint that `id` or `id@step` names. Raises Problem."""
    model_id, wanted = parse_model(text)
    describe(stores, model_id)
    return model_id, checkpoint_step(stores, model_id, wanted)


def _classes(stores: Stores, model_id: str) -> list[str]:
    """The names of a model's classes; none unless it is conditional."""
    found: list[str] = describe(stores, model_id).get("classes") or []
    return found


@router.get("", operation_id="list_jobs", summary="List jobs, newest first")
def list_jobs(
    stores: StoresDependency,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state", examples=["running"])] = None,
    kind: Annotated[JobKind | None, Query(description="Only jobs of this kind", examples=["train"])] = None,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Jobs on a page")] = 50,
) -> JobPageBody:
    """One page of jobs."""
    page = stores.records.list(status=status, kind=kind, cursor=cursor, limit=limit)
    return JobPageBody(jobs=[job_body(stores, record) for record in page.records], next_cursor=page.next_cursor)


@router.get("/{job_id}", operation_id="get_job", summary="Look at a job", responses=documented(404))
async def get_job(job_id: JobId, stores: StoresDependency, wait: WaitDependency) -> JobBody:
    """The job as it stands, or with `Prefer: wait=N` as it ended."""
    record = await wait.record(stores, await run_in_threadpool(stores.records.find, job_id))
    return await run_in_threadpool(job_body, stores, record)


@router.get(
    "/{job_id}/events",
    operation_id="follow_job",
    summary="Follow a job",
    response_class=Response,
    responses={
        200: {
            "description": "Events from the first, or after `Last-Event-ID`, until the job ends. Each has an `id`, "
            "a type and, as `data`, an EventBody",
            "content": {
                _SSE: {"schema": _SSE_SCHEMA},
                _JSON_LINES: {"schema": {"type": "string", "description": "An EventBody a line", "examples": [_LINE]}},
            },
        },
        **documented(404, 406),
    },
)
async def follow_job(
    job_id: JobId,
    stores: StoresDependency,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
    last_event_id: LastEventId = _FROM_THE_START,
) -> StreamingResponse:
    """Server-sent events, or JSON Lines with `Accept: application/jsonl`."""
    form = preferred(accept, [_SSE, _JSON_LINES])
    if form is None:
        raise not_acceptable([_SSE, _JSON_LINES])
    await run_in_threadpool(stores.records.find, job_id)  # a job that does not exist is a 404, not an empty stream
    events = _events(stores, job_id, last_event_id)
    if form == _JSON_LINES:
        return StreamingResponse(_as_lines(events), media_type=_JSON_LINES)
    # X-Accel-Buffering: a proxy must hand each event on as it comes.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return EventSourceResponse(_as_server_sent(events), headers=headers)


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    summary="Cancel a job",
    status_code=202,
    responses={200: {"model": JobBody, "description": "It had ended before"}, **documented(404)},
)
def cancel_job(job_id: JobId, response: Response, stores: StoresDependency) -> JobBody:
    """A waiting job is cancelled at once, a running one within a step; its checkpoints stay usable."""
    before = stores.records.find(job_id)
    record = stores.records.request_cancel(job_id)
    if before.status.is_terminal:
        response.status_code = 200
    return job_body(stores, record)


@router.post(
    "/{job_id}/resume",
    operation_id="resume_job",
    summary="Go on with a failed or cancelled job",
    status_code=202,
    responses=documented(404, 409),
    dependencies=[JobSlot],
)
def resume_job(job_id: JobId, stores: StoresDependency, request: ResumeRequest | None = None) -> JobBody:
    """Queues the job again, to go on from its last checkpoint, with another number of steps if given."""
    before, spec = stores.records.find(job_id), None
    if request is not None and request.steps is not None:
        spec = _longer_spec(before, request.steps)
    _require_model(stores, before)
    record = stores.records.resume(job_id, spec=spec)
    queue(stores, record)
    return job_body(stores, record)


@router.delete(
    "/{job_id}", operation_id="delete_job", summary="Delete a job", status_code=204, responses=documented(404, 409)
)
def delete_job(job_id: JobId, stores: StoresDependency) -> None:
    """Its events, sample grids and files go with it; refused until it has ended.

    The model that it trained stays, unless the training stored no checkpoint.
    """
    stores.records.find(job_id)
    Deletions(stores.records).delete_job(job_id)


def _require_model(stores: Stores, record: JobRecord) -> None:
    """Raises Problem 409 when the model was deleted that the job would go on with."""
    kind = kind_of(record.kind)
    begins_it = kind is not None and kind.makes_model and record.last_checkpoint is None
    if record.model_id is not None and not begins_it and not stores.artifacts.has_model(record.model_id):
        raise Problem(
            409,
            "model-deleted",
            f"job {record.id} cannot go on, because its model {record.model_id} was deleted; start another job",
        )


def _longer_spec(record: JobRecord, steps: int) -> dict[str, object]:
    if record.kind != JobKind.train:
        raise field_problem(["body", "steps"], f"job {record.id} is no training ({record.kind}); leave `steps` out")
    done = record.last_checkpoint or 0
    if steps <= done:
        raise field_problem(["body", "steps"], f"{done} steps are done already; give more, or leave `steps` out")
    return {**record.spec, "config": to_dict(with_steps(record.spec["config"], steps))}


async def _events(stores: Stores, job_id: str, after: str) -> AsyncIterator[JobEvent | None]:
    """Every event after an id until the job has ended; None when a while passed without one."""
    while backlog := await run_in_threadpool(stores.records.read_events, job_id, after):
        for event in backlog:
            yield event
        after = backlog[-1].id
    while True:
        # The state is read before the events: whatever a job said before it ended is then in the stream.
        ended = (await run_in_threadpool(stores.records.get, job_id)).status.is_terminal
        events = await follow_events(stores.redis, job_id, after, block_ms=1 if ended else 4000)
        for event in events:
            yield event
            after = event.id
        if ended and not events:
            return
        if not events:
            yield None


async def _as_server_sent(events: AsyncIterator[JobEvent | None]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            if event is None:
                yield KEEPALIVE_COMMENT
            else:
                yield format_sse_event(data_str=_event_json(event), event=event.type, id=event.id)
    except Exception as error:
        yield format_sse_event(data_str=json.dumps({"detail": _lost(error).detail}), event="interrupted")


async def _as_lines(events: AsyncIterator[JobEvent | None]) -> AsyncIterator[str]:
    async for event in events:
        # An empty line keeps proxies from closing a quiet connection.
        yield "\n" if event is None else _event_json(event) + "\n"


def _event_json(event: JobEvent) -> str:
    return EventBody(**event.model_dump()).model_dump_json()


def _lost(error: Exception) -> Problem:
    return Problem(503, "interrupted", f"the stream broke ({type(error).__name__}); reconnect with Last-Event-ID")

"""The way of every request that makes a job: it is counted, checked, stored once, queued, and answered in time.

A route adds what is special about its kind of job: the spec that a request stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from fastapi import Depends, Response
from kombu.exceptions import OperationalError
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from service.bodies.jobs import JobBody
from service.door.limits import JobSlot
from service.http.errors import documented
from service.http.idempotency import IdempotencyKeyDependency
from service.http.preference import WaitDependency
from service.stores import Stores, StoresDependency
from worker.jobs.kinds import JobKind, Spec
from worker.jobs.record import JobRecord, JobStatus
from worker.queue.broker import wake

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The job that a request asks for, once the request is checked."""

    spec: Spec
    model_id: str | None = None
    """The model that the job works on, or None for a job that makes a model, which gets a new id."""


class Submission:
    """A request that makes a job, with its idempotency key and the time that its client would wait."""

    def __init__(
        self,
        response: Response,
        stores: StoresDependency,
        key: IdempotencyKeyDependency,
        wait: WaitDependency,
        _slot: None = JobSlot,
    ) -> None:
        self.stores = stores
        self._response = response
        self._key = key
        self._wait = wait

    async def answer(self, kind: JobKind, request: BaseModel, wanted_fn: Callable[[], Wanted]) -> JobBody:
        """Make the job, unless this request made it before, and describe it after the wait that its client prefers.

        `wanted_fn` checks the request, in a thread. Raises the errors of `wanted_fn`, and Problem 409, 422 or 429.
        """
        name: str | None = getattr(request, "name", None)

        def made() -> JobRecord:
            wanted = wanted_fn()
            return self._key.create(
                self.stores, request, lambda job_id: submit(self.stores, kind, wanted, name=name, job_id=job_id)
            )

        record = await run_in_threadpool(made)
        self._response.headers["Location"] = f"/jobs/{record.id}"
        record = await self._wait.record(self.stores, record)
        if self._wait.seconds is not None and record.status.is_terminal:
            self._response.status_code = 200
        return await run_in_threadpool(job_body, self.stores, record)


SubmissionDependency = Annotated[Submission, Depends()]


def making_a_job(*statuses: int) -> dict[str, Any]:
    """Return the arguments that the decorators of all routes that make a job share.

    `statuses` are those of the problems that the route may answer.
    """
    ended = {"model": JobBody, "description": "The job ended within the time that `Prefer: wait` gave it"}
    return {"status_code": 202, "responses": {200: ended, **documented(*statuses)}}


def submit(stores: Stores, kind: JobKind, wanted: Wanted, *, name: str | None, job_id: str) -> JobRecord:
    """Store a job of any kind, and queue it. Raises StorageUnavailable or RedisError; then there is no job."""
    spec = wanted.spec.model_dump(mode="json")
    record = stores.records.create(kind, spec, name=name, model_id=wanted.model_id, job_id=job_id)
    queue(stores, record)
    return record


def queue(stores: Stores, record: JobRecord) -> None:
    """Tell the workers that the job waits."""
    try:
        wake(stores.broker, record.kind, record.id)
    except OperationalError:
        # The record is stored and is what counts: the reaper sends the message again.
        log.warning("wake_up_not_sent", job_id=record.id)


def job_body(stores: Stores, record: JobRecord) -> JobBody:
    """Describe a job by the public part of its record, with its place in the queue."""
    position = stores.records.queue_position(record) if record.status is JobStatus.queued else None
    return JobBody.of(record, queue_position=position)

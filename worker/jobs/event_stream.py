"""A job's events: a capped Redis stream while it runs, and a copy in S3 from its end and from every checkpoint on.

Event ids are stream ids, "milliseconds-sequence": they grow over the whole life of a job, and a reader resumes after
any of them.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ResponseError

from worker.ids import checked_id
from worker.jobs import lua
from worker.jobs.event import JobEvent
from worker.jobs.record import StaleLease, now
from worker.redis_keys import EVENTS
from worker.storage.artifacts import ArtifactMissing, Artifacts, job_prefix

MAX_BLOCK_MS = 4000
"""The longest that one call may block: redis-py's default socket timeout is 5 s."""


def events_key(job_id: str) -> str:
    """The Redis key of a job's stream. Raises InvalidId."""
    return EVENTS.of(checked_id(job_id))


class EventLog:
    """Appends and reads the events of all jobs."""

    def __init__(self, redis: Redis, artifacts: Artifacts, *, limit: int) -> None:
        self._redis = redis
        self._artifacts = artifacts
        self._limit = limit
        self._append_script = redis.register_script(lua.APPEND_EVENT)

    def append(self, job_id: str, type_: str, data: Mapping[str, Any], token: int) -> str:
        """Add an event in the name of a lease; returns its id. Raises StaleLease."""
        packed = json.dumps(finite(data), allow_nan=False)
        event_id = self._append_script(args=[job_id, token, type_, now().isoformat(), packed, self._limit])
        if event_id is None:
            raise StaleLease(job_id, token)
        return str(event_id.decode())

    def read(self, job_id: str, after: str = "0", *, block_ms: int = 0, limit: int = 500) -> list[JobEvent]:
        """Read the events after an id, from S3 when Redis has no stream any more; waits up to `block_ms` for one."""
        key = events_key(job_id)
        block = min(block_ms, MAX_BLOCK_MS) if block_ms > 0 else None
        found: Any = self._redis.xread({key: after}, count=limit, block=block)
        if found:
            return events_from_reply(found)
        if self._redis.exists(key):
            return []
        return [event for event in self.archived(job_id) if _order(event.id) > _order(after)][:limit]

    def archive(self, job_id: str) -> None:
        """Write all events to S3; nothing happens when Redis has none. Raises StorageUnavailable."""
        entries: Any = self._redis.xrange(events_key(job_id))
        if entries:
            lines = [event_from_stream(*entry).model_dump_json() for entry in entries]
            self._artifacts.put_bytes(_archive_key(job_id), "\n".join(lines).encode(), "application/jsonl")

    def archived(self, job_id: str) -> list[JobEvent]:
        """Read the events in S3; there are none when they were never archived."""
        try:
            lines = self._artifacts.get_bytes(_archive_key(job_id)).decode().splitlines()
        except ArtifactMissing:
            return []
        return [JobEvent.model_validate_json(line) for line in lines]

    def bring_back(self, job_id: str) -> None:
        """Load the archived events into Redis if it has none, so that the job goes on with its own stream."""
        if self._redis.exists(events_key(job_id)):
            return
        pipeline = self._redis.pipeline()
        for event in self.archived(job_id):
            fields: dict[Any, Any] = {
                "type": event.type,
                "at": event.at.isoformat(),
                "data": json.dumps(event.data),
            }
            pipeline.xadd(events_key(job_id), fields, id=event.id)
        with contextlib.suppress(ResponseError):  # another process was faster: ids must grow
            pipeline.execute()


async def follow_events(
    redis: AsyncRedis, job_id: str, after: str, *, block_ms: int = 4000, limit: int = 500
) -> list[JobEvent]:
    """Read the events after an id, waiting up to `block_ms` (at most 4000) for the first; asynchronous."""
    found: Any = await redis.xread({events_key(job_id): after}, count=limit, block=min(block_ms, MAX_BLOCK_MS))
    return events_from_reply(found)


def event_from_stream(event_id: bytes, fields: Mapping[bytes, bytes]) -> JobEvent:
    """The event in a stream entry."""
    return JobEvent(
        id=event_id.decode(),
        type=fields[b"type"].decode(),
        at=datetime.fromisoformat(fields[b"at"].decode()),
        data=json.loads(fields[b"data"]),
    )


def events_from_reply(reply: Any) -> list[JobEvent]:
    """The events in an XREAD reply of one stream."""
    return [event_from_stream(*entry) for _, entries in reply or [] for entry in entries]


def finite(value: Any) -> Any:
    """Replace every number in `value` that JSON cannot write (nan, inf) by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def _archive_key(job_id: str) -> str:
    return f"{job_prefix(job_id)}events.jsonl"

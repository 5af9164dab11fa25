"""The header `Idempotency-Key`: a request that is sent again, because its answer got lost, makes no second job.

Before the job is made, its key is bound in Redis to a fingerprint of the request and to the id that the job will have.
Whether that job exists then says whether the request is still under way, even if the process that served it died.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from redis.exceptions import RedisError

from service.http.errors import Problem
from service.stores import Stores
from worker.ids import new_id
from worker.jobs.record import JobNotFound, JobRecord
from worker.redis_keys import IDEMPOTENCY

KEY_TTL_S = 24 * 3600
"""The seconds for which a key is remembered, unless Redis is wiped."""
_IN_FLIGHT_S = 180
"""The seconds after which a request that never made its job is forgotten; no request waits for storage that long."""


class IdempotencyKey:
    """The idempotency key of a request, if it has one."""

    def __init__(
        self,
        request: Request,
        key: Annotated[
            str | None,
            Header(
                alias="Idempotency-Key",
                min_length=1,
                max_length=255,
                description="Any text of the client's choice; the same request, sent again with it, gets the same job",
                examples=["f3a1c2d4-first-try"],
            ),
        ] = None,
        authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> None:
        self._path = request.url.path
        # Two clients may choose the same key.
        self._name = None if key is None else IDEMPOTENCY.of(_digest(authorization or "", key))

    def create(self, stores: Stores, body: BaseModel, create_fn: Callable[[str], JobRecord]) -> JobRecord:
        """Return the job that `create_fn(id)` makes, or the one that it made when this request came before.

        Raises Problem 422 when the key came with another request, 409 while that is still under way.
        """
        if self._name is None:
            return create_fn(new_id())
        redis, job_id = stores.records.redis, new_id()
        fingerprint = _digest(self._path, body.model_dump_json())
        if not redis.set(self._name, f"{fingerprint} {job_id}", nx=True, ex=_IN_FLIGHT_S):
            return self._made_before(stores, fingerprint)
        try:
            record = create_fn(job_id)
        except Exception:  # any error is raised again, and the key must not answer for a job that was never made
            with contextlib.suppress(RedisError):
                redis.delete(self._name)
            raise
        redis.expire(self._name, KEY_TTL_S)
        return record

    def _made_before(self, stores: Stores, fingerprint: str) -> JobRecord:
        redis = stores.records.redis
        bound: Any = redis.get(str(self._name))
        known, _, job_id = (bound or b"").decode().partition(" ")
        if bound and known != fingerprint:
            raise Problem(
                422,
                "idempotency-key-reused",
                "this Idempotency-Key came with another request before; send that one again, or take a new key",
            )
        try:
            return stores.records.get(job_id)
        except (JobNotFound, ValueError):
            if int(redis.ttl(str(self._name)) or 0) > _IN_FLIGHT_S:
                raise Problem(
                    409, "job-deleted", "the job that this Idempotency-Key made was deleted; take a new key"
                ) from None
            raise Problem(
                409,
                "request-in-flight",
                "a request with this Idempotency-Key is still under way; send it again in a moment",
                headers={"Retry-After": "1"},
            ) from None


IdempotencyKeyDependency = Annotated[IdempotencyKey, Depends()]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()

"""How much one caller may ask for: requests a second, and jobs at a time. Both are counted in Redis, for all processes.

The rate follows the generic cell rate algorithm (ITU-T I.371): one timestamp a caller, at which it would have used up
nothing. While Redis is away the rate is not limited, since nearly every route then answers 503 anyway; jobs need Redis.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import structlog
from fastapi import Depends, Request, Response
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.door.security import Caller
from service.http.errors import Problem
from service.settings import ServiceSettings
from service.stores import StoresDependency
from worker.ids import new_id
from worker.jobs.places import reserve_place, settle_place
from worker.redis_keys import RATE

_PATIENCE_S = 0.5
"""A Redis slower than that does not hold up requests."""

_RATE = """
-- Answers {allowed, requests left, microseconds until one is allowed, microseconds until all are}.
local interval_us, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local wait = full_at + interval_us - burst * interval_us - now
if wait > 0 then return {0, 0, math.ceil(wait), math.ceil(full_at - now)} end
full_at = full_at + interval_us
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
return {1, math.floor(-wait / interval_us), 0, math.ceil(full_at - now)}
"""

log = structlog.get_logger()


class RateLimit:
    """Requests a second of every caller."""

    def __init__(self, redis: Redis, settings: ServiceSettings) -> None:
        self._script = redis.register_script(_RATE)
        self._interval_us = 1e6 / settings.rate_limit_per_s
        self._burst = settings.rate_limit_burst
        self._policy = f'"default";q={self._burst};w={math.ceil(self._burst / settings.rate_limit_per_s)}'

    async def count(self, caller: Caller) -> dict[str, str]:
        """Headers that say what is left (draft-ietf-httpapi-ratelimit-headers). Raises Problem 429."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                found: Any = await self._script(keys=[RATE.of(caller.identity)], args=[self._interval_us, self._burst])
        except (RedisError, TimeoutError) as error:
            log.warning("rate_not_limited", error=type(error).__name__)
            return {}
        allowed, left, wait_us, full_us = found
        headers = {
            "RateLimit-Policy": self._policy,
            "RateLimit": f'"default";r={left};t={math.ceil(full_us / 1e6)}',
        }
        if allowed:
            return headers
        wait_s = max(1, math.ceil(wait_us / 1e6))
        raise Problem(
            429,
            "too-many-requests",
            f"more than {1e6 / self._interval_us:g} requests a second; try again in {wait_s} s",
            headers={**headers, "Retry-After": str(wait_s)},
        )


async def _job_slot(request: Request, response: Response, stores: StoresDependency) -> AsyncIterator[None]:
    """Count the job that a route starts, or starts again, against its key. Raises Problem 429.

    The route names it by its `Location`, or has it in its path.
    """
    caller: Caller = request.state.caller
    if caller.key is None:
        yield
        return
    limit, reservation = stores.settings.max_jobs_per_key, new_id()
    if not await reserve_place(stores.redis, caller.key.id, reservation, limit):
        raise Problem(
            429,
            "too-many-jobs",
            f"this key has {limit} jobs that wait or run, all that it may; wait for one to end, or cancel one",
            headers={"Retry-After": "60"},
        )
    job_id = None
    try:
        yield
        location = response.headers.get("Location", "")
        job_id = request.path_params.get("job_id") or location.rpartition("/")[2]
    finally:
        try:
            await settle_place(stores.redis, caller.key.id, reservation, job_id)
        except RedisError as error:  # the answer stands; the reservation runs out by itself
            log.warning("job_not_counted", error=type(error).__name__)


JobSlot = Depends(_job_slot)
"""For the decorators of routes that start jobs."""

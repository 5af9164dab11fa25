"""How many jobs one API key may have open at a time: places, counted in Redis for all processes. Needs no torch."""

from __future__ import annotations

import time

from redis import Redis as SyncRedis
from redis.asyncio import Redis

from worker.jobs import lua
from worker.redis_keys import JOB_PLACES

_RESERVATION_S = 60
"""The longest that a place is kept between a request for a job and its record."""


async def reserve_place(redis: Redis, holder: str, reservation: str, limit: int) -> bool:
    """Keep a place for one more job of `holder`; False when it has `limit` open ones. Raises RedisError."""
    now = time.time()
    script = redis.register_script(lua.RESERVE_PLACE)
    return bool(await script(keys=[JOB_PLACES.of(holder)], args=[limit, reservation, now, now + _RESERVATION_S]))


def forget_place(redis: SyncRedis, job_id: str) -> None:
    """Take a job that is deleted away from whoever asked for it. Raises RedisError."""
    for places in redis.scan_iter(match=JOB_PLACES.of("*")):
        redis.zrem(places, job_id)


async def settle_place(redis: Redis, holder: str, reservation: str, job_id: str | None) -> None:
    """Give the reserved place to the job that was made, or free it when none was. Raises RedisError."""
    pipeline = redis.pipeline()
    pipeline.zrem(JOB_PLACES.of(holder), reservation)
    if job_id:
        pipeline.zadd(JOB_PLACES.of(holder), {job_id: 0})
    await pipeline.execute()

"""How much waits for the samplers, as Celery's lists of messages and the samplers themselves say. Needs no torch."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from worker.queue.loads import SamplerLoad, fresh_loads, own_queue
from worker.redis_keys import LOADS, SAMPLE_QUEUE


@dataclass(frozen=True)
class Backlog:
    """The requests in all queues of the samplers."""

    num_requests: int
    oldest_s: float
    """how long the first of them has waited, seconds; 0 where none waits"""


def request_backlog(redis: Redis) -> Backlog:
    """Count what waits in the queue that all samplers share and in those of single samplers. Raises RedisError."""
    samplers: Any = redis.hkeys(LOADS)
    pipeline = redis.pipeline(transaction=False)
    for queue in [SAMPLE_QUEUE, *(own_queue(name.decode()) for name in samplers)]:
        pipeline.llen(queue)
        pipeline.lindex(queue, -1)  # Celery takes the last of the list
    found = pipeline.execute()
    return Backlog(num_requests=sum(found[::2]), oldest_s=max(_age_s(message) for message in found[1::2]))


async def shared_backlog(redis: AsyncRedis) -> tuple[int, list[SamplerLoad]]:
    """Return the number of requests that any sampler may take, and what the samplers say of themselves."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.llen(SAMPLE_QUEUE)
    pipeline.hgetall(LOADS)
    length, entries = await pipeline.execute()
    return length, fresh_loads(entries)


def _age_s(message: bytes | None) -> float:
    """Return for how many seconds a request has waited in a queue."""
    if message is None:
        return 0.0
    (request,), _, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
    return max(0.0, time.time() - float(request["sent_at"]))

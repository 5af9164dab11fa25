"""Numbers about all jobs, queues and workers, as Redis shows them at one moment."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.jobs.kinds import TRAIN_QUEUE
from worker.jobs.record import now
from worker.jobs.records import RecordStore
from worker.jobs.tally import Tally, read_tally
from worker.observe.presence import live_workers
from worker.queue.loads import LOADS_KEY, own_queue
from worker.queue.messages import SAMPLE_QUEUE

_QUEUES = (TRAIN_QUEUE, SAMPLE_QUEUE)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Keys are label values."""

    queue_lengths: Mapping[tuple[str, ...], float]
    queue_ages_s: Mapping[tuple[str, ...], float]
    """0 where nothing waits"""
    workers: Mapping[tuple[str, ...], float]
    tally: Tally


def fleet(records: RecordStore) -> Fleet:
    """Raises RedisError."""
    samplers: Any = records.redis.hkeys(LOADS_KEY)
    sample_queues = [SAMPLE_QUEUE, *(own_queue(name.decode()) for name in samplers)]
    pipeline = records.redis.pipeline(transaction=False)
    pipeline.llen(TRAIN_QUEUE)
    for queue in sample_queues:
        pipeline.llen(queue)
        pipeline.lindex(queue, -1)
    num_training, *samples = pipeline.execute()
    waiting_since = records.waiting_since(TRAIN_QUEUE)
    workers = live_workers(records.redis)
    return Fleet(
        queue_lengths={(TRAIN_QUEUE,): num_training, (SAMPLE_QUEUE,): sum(samples[::2])},
        queue_ages_s={
            (TRAIN_QUEUE,): max(0.0, (now() - waiting_since).total_seconds()) if waiting_since else 0.0,
            (SAMPLE_QUEUE,): max((_age_s(message) for message in samples[1::2]), default=0.0),
        },
        workers={(kind,): workers.get(kind, 0) for kind in _QUEUES},
        tally=read_tally(records.redis),
    )


def _age_s(message: bytes | None) -> float:
    """Of a request on the queue; Celery takes the last of the list."""
    if message is None:
        return 0.0
    (request,), _, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
    return max(0.0, time.time() - float(request["sent_at"]))

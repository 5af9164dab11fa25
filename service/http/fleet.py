"""Numbers about all jobs, queues and workers, as Redis shows them at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.jobs.record import now
from worker.jobs.records import RecordStore
from worker.jobs.tally import Tally, read_tally
from worker.observe.presence import live_workers
from worker.queue.backlog import request_backlog
from worker.redis_keys import SAMPLE_QUEUE, TRAIN_QUEUE

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
    num_training: Any = records.redis.llen(TRAIN_QUEUE)
    requests = request_backlog(records.redis)
    waiting_since = records.waiting_since(TRAIN_QUEUE)
    workers = live_workers(records.redis)
    return Fleet(
        queue_lengths={(TRAIN_QUEUE,): num_training, (SAMPLE_QUEUE,): requests.num_requests},
        queue_ages_s={
            (TRAIN_QUEUE,): max(0.0, (now() - waiting_since).total_seconds()) if waiting_since else 0.0,
            (SAMPLE_QUEUE,): requests.oldest_s,
        },
        workers={(kind,): workers.get(kind, 0) for kind in _QUEUES},
        tally=read_tally(records.redis),
    )

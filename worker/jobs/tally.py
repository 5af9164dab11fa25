"""What became of attempts and jobs, counted in Redis by the very script that writes the transition.

So no count is lost or doubled whoever is killed when, and every API process shows the same. A wiped Redis starts again
from 0, which Prometheus takes for what it is, a counter's reset. No torch.

    jobs:counts   hash: KIND/STATUS -> jobs that are in it
    jobs:tally    hash: started/KIND -> attempts; attempt/KIND/OUTCOME/… and job/KIND/STATUS/… -> of a histogram,
                  the count of interval … or, for `sum`, seconds
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from redis import Redis

from worker.jobs.kinds import JobKind
from worker.jobs.record import JobRecord, JobStatus, now
from worker.redis_keys import JOB_COUNTS, JOB_TALLY

# Stored by index: other bounds need other names of the fields.
BOUNDS_S = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400, 3 * 86400, 7 * 86400)
"""Upper bounds of the intervals in which durations are counted, seconds; a last interval is above them all."""

Cut = Literal["interrupted", "lost", "lease_lost"]
"""Why an attempt ended before its job: its worker was shut down; its process was killed, or a store stayed away; nobody
renewed its lease."""
_ENDINGS = tuple(status for status in JobStatus if status.is_terminal)
OUTCOMES: tuple[str, ...] = (*_ENDINGS, "interrupted", "lost", "lease_lost")


@dataclass(frozen=True)
class Distribution:
    """How many observations fell into each interval between bounds, as a histogram keeps them, and their sum."""

    counts: Sequence[float]
    """of each interval, the last one above all bounds"""
    total: float


@dataclass(frozen=True)
class Tally:
    """The counts in Redis, by the labels that are named."""

    jobs: Mapping[tuple[str, ...], float]
    started: Mapping[tuple[str, ...], float]
    attempts: Mapping[tuple[str, ...], Distribution]
    ended: Mapping[tuple[str, ...], Distribution]


def additions(before: JobRecord | None, after: JobRecord, cut: Cut | None) -> dict[str, float]:
    """What a transition adds to the tally."""
    if before is None or before.status is after.status:
        return {}
    added: dict[str, float] = {}
    if after.status is JobStatus.running:
        added[f"started/{after.kind}"] = 1
    if before.status is JobStatus.running and before.started_at is not None:
        outcome = cut if cut and after.status is not JobStatus.cancelled else str(after.status)
        added |= _observation("attempt", after.kind, outcome, now() - before.started_at)
    if after.status.is_terminal:
        added |= _observation("job", after.kind, after.status, now() - after.queued_at)
    return added


def read_tally(redis: Redis) -> Tally:
    """Read the counts from Redis. Raises RedisError."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.hgetall(JOB_COUNTS)
    pipeline.hgetall(JOB_TALLY)
    counts, tally = ({key.decode(): float(value) for key, value in found.items()} for found in pipeline.execute())
    return Tally(
        jobs={(kind, status): counts.get(f"{kind}/{status}", 0) for kind in JobKind for status in JobStatus},
        started={(kind,): tally.get(f"started/{kind}", 0) for kind in JobKind},
        attempts=_distributions(tally, "attempt", OUTCOMES),
        ended=_distributions(tally, "job", _ENDINGS),
    )


def interval_of(seconds: float) -> int:
    """Index in `Distribution.counts` of a duration; as in Prometheus, a bound belongs to the interval below it."""
    return bisect.bisect_left(BOUNDS_S, seconds)


def _observation(what: str, kind: str, how: str, elapsed: timedelta) -> dict[str, float]:
    seconds = max(0.0, elapsed.total_seconds())
    return {f"{what}/{kind}/{how}/{interval_of(seconds)}": 1, f"{what}/{kind}/{how}/sum": seconds}


def _distributions(tally: Mapping[str, float], what: str, hows: Iterable[str]) -> dict[tuple[str, ...], Distribution]:
    """A distribution for every kind and ending, also before the first: a counter that appears with a 1 has no rate."""

    def distribution(prefix: str) -> Distribution:
        counts = [tally.get(f"{prefix}/{index}", 0) for index in range(len(BOUNDS_S) + 1)]
        return Distribution(counts, tally.get(f"{prefix}/sum", 0))

    return {(kind, how): distribution(f"{what}/{kind}/{how}") for kind in JobKind for how in hows}

"""What became of attempts and jobs: counted once, whoever dies, and the same for all who read."""

from __future__ import annotations

import contextlib
import threading

import pytest

from tests.worker.conftest import make_job
from worker.jobs.kinds import JobKind
from worker.jobs.record import JobStatus, StaleLease
from worker.jobs.records import RecordStore
from worker.jobs.tally import Tally, interval_of, read_tally


def tally(store: RecordStore) -> Tally:
    """As a scrape reads it."""
    return read_tally(store.redis)


def attempts(store: RecordStore) -> dict[str, float]:
    """Ended attempts at trainings by outcome, those that there are."""
    found = {outcome: sum(d.counts) for (kind, outcome), d in tally(store).attempts.items() if kind == "train"}
    return {outcome: count for outcome, count in found.items() if count}


def jobs(store: RecordStore) -> dict[tuple[str, ...], float]:
    """Jobs by kind and status, where there are some."""
    return {labels: count for labels, count in tally(store).jobs.items() if count}


def test_a_job_is_counted_where_it_is(store: RecordStore) -> None:
    queued, _ = make_job(store, JobStatus.queued)
    assert jobs(store) == {("train", "queued"): 1}
    store.create(JobKind.calibrate, {"config": {}})
    assert store.acquire_lease(queued.id, "a@b") is not None
    assert jobs(store) == {("train", "running"): 1, ("calibrate", "queued"): 1}


@pytest.mark.parametrize("status", [JobStatus.succeeded, JobStatus.failed, JobStatus.cancelled])
def test_an_end_counts_the_job_and_its_attempt(store: RecordStore, status: JobStatus) -> None:
    make_job(store, status)
    assert attempts(store) == {status: 1}
    assert sum(tally(store).ended["train", status].counts) == 1
    assert tally(store).started["train",] == 1
    assert jobs(store) == {("train", status): 1}


def test_a_job_that_is_cancelled_in_the_queue_had_no_attempt(store: RecordStore) -> None:
    record, _ = make_job(store, JobStatus.queued)
    store.request_cancel(record.id)
    assert attempts(store) == {}
    assert sum(tally(store).ended["train", "cancelled"].counts) == 1


def test_attempts_that_end_before_their_job_are_told_apart(store: RecordStore) -> None:
    first, second, third = (lease for _, lease in (make_job(store, JobStatus.running) for _ in range(3)) if lease)
    store.requeue(first, "shut down")
    store.lose_attempt(second, "killed")
    store.redis.delete(f"lease:{third.job_id}")
    store.lose_unleased(third.job_id, "silent")
    assert attempts(store) == {"interrupted": 1, "lost": 1, "lease_lost": 1}
    assert jobs(store) == {("train", "queued"): 3}


def test_cancelling_is_no_loss(store: RecordStore) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    store.request_cancel(record.id)
    store.lose_attempt(lease, "killed")
    assert attempts(store) == {"cancelled": 1}


def test_of_many_that_end_one_attempt_one_is_counted(store: RecordStore) -> None:
    _, lease = make_job(store, JobStatus.running)
    assert lease is not None

    def end() -> None:
        with contextlib.suppress(StaleLease):
            store.succeed(lease)

    threads = [threading.Thread(target=end) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert attempts(store) == {"succeeded": 1}
    assert jobs(store) == {("train", "succeeded"): 1}


def test_a_duration_falls_into_its_interval(store: RecordStore) -> None:
    make_job(store, JobStatus.succeeded)
    found = tally(store).attempts["train", "succeeded"]
    assert found.counts[0] == 1  # within the first second
    assert 0 < found.total < 1
    assert [interval_of(seconds) for seconds in (0.5, 1.0, 1.1, 1e9)] == [0, 0, 1, 12]


def test_jobs_that_come_back_from_storage_are_counted_again(store: RecordStore) -> None:
    make_job(store, JobStatus.succeeded)
    make_job(store, JobStatus.queued)
    before = jobs(store)
    store.redis.flushall()
    store.restore_from_s3()
    assert jobs(store) == before
    assert attempts(store) == {}

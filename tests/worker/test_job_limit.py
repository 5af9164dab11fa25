"""Workers that end by themselves, as a cluster's one-pod-one-job trainers do."""

from __future__ import annotations

import time
from typing import Any

from tests.servers import PATIENCE_S, wait_until
from tests.worker.conftest import TRAINER, StartWorker, tiny_spec
from worker.ids import new_id
from worker.jobs.kinds import JobKind
from worker.jobs.record import JobRecord, JobStatus
from worker.jobs.records import RecordStore
from worker.observe.presence import live_workers
from worker.queue.broker import make_app, wake
from worker.redis_keys import TRAIN_QUEUE

ONE_JOB = f"{TRAINER} --max-jobs 1"


def _submit(store: RecordStore, **changes: Any) -> JobRecord:
    record = store.create(JobKind.train, tiny_spec(**changes))
    with make_app(store.settings) as app:
        wake(app, record.kind, record.id)
    return record


def test_a_trainer_of_one_job_takes_one_of_two_runs_it_to_its_end_and_exits(
    store: RecordStore, start_worker: StartWorker
) -> None:
    first, second = _submit(store), _submit(store)
    worker = start_worker("single", ONE_JOB)
    assert worker.process.wait(PATIENCE_S) == 0, worker.log.read_text()
    assert store.get(first.id).status is JobStatus.succeeded
    assert store.get(second.id).status is JobStatus.queued
    assert store.redis.llen(TRAIN_QUEUE) == 1
    assert store.redis.hlen("unacked") == 0
    assert live_workers(store.redis) == {}
    assert start_worker("next", ONE_JOB).process.wait(PATIENCE_S) == 0
    assert store.get(second.id).status is JobStatus.succeeded


def test_sigterm_puts_the_job_of_such_a_trainer_back_for_the_next(
    store: RecordStore, start_worker: StartWorker
) -> None:
    record = _submit(store, steps=5000, checkpoint_every=100)
    worker = start_worker("single", ONE_JOB)
    wait_until(lambda: (store.get(record.id).last_checkpoint or 0) >= 100, "a checkpoint")
    assert worker.stop(15) == 0
    assert (store.get(record.id).status, store.get(record.id).attempt) == (JobStatus.queued, 1)
    assert store.redis.llen(TRAIN_QUEUE) == 1


def test_a_restarted_redis_does_not_make_such_a_trainer_take_a_second_job(
    store: RecordStore, start_worker: StartWorker
) -> None:
    first, second = _submit(store, steps=400, checkpoint_every=200), _submit(store)
    worker = start_worker("single", ONE_JOB)
    wait_until(lambda: store.get(first.id).status is JobStatus.running, "the first job")
    store.redis.client_kill_filter(skipme=True, _type="normal")
    assert worker.process.wait(PATIENCE_S) == 0, worker.log.read_text()
    assert store.get(first.id).status is JobStatus.succeeded
    assert store.get(second.id).status is JobStatus.queued


def test_such_a_trainer_ends_too_when_its_message_finds_no_job(store: RecordStore, start_worker: StartWorker) -> None:
    with make_app(store.settings) as app:
        wake(app, JobKind.train, new_id())
    assert start_worker("single", ONE_JOB).process.wait(PATIENCE_S) == 0


def test_a_trainer_ends_when_no_job_came_but_not_while_it_has_one(
    store: RecordStore, start_worker: StartWorker
) -> None:
    record = _submit(store, steps=300, checkpoint_every=100)
    worker = start_worker("idle", f"{TRAINER} --max-idle 2")
    wait_until(lambda: store.get(record.id).status.is_terminal, "the job's end")
    assert store.get(record.id).status is JobStatus.succeeded
    ended_at = time.monotonic()
    assert worker.process.wait(PATIENCE_S) == 0
    assert 1.5 < time.monotonic() - ended_at < 10

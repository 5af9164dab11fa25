from __future__ import annotations

import time

import pytest

from tests.servers import wait_until
from tests.worker.conftest import make_job
from worker.jobs.kinds import JobKind
from worker.jobs.reaper import Reaper
from worker.jobs.record import JobStatus
from worker.jobs.records import RecordStore
from worker.queue.broker import make_app, wake
from worker.redis_keys import REAPER_LOCK, TRAIN_QUEUE
from worker.settings import Settings
from worker.storage.artifacts import Artifacts


class Woken(list[str]):
    """Job ids that were woken."""

    def __call__(self, kind: str, job_id: str) -> None:
        assert kind == JobKind.train
        self.append(job_id)


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def reaper(store: RecordStore, woken: Woken) -> Reaper:
    # The test server has just started; only a store whose leases outlive it would wait.
    wait_until(lambda: store.redis.info("server")["uptime_in_seconds"] > store.settings.lease_s, "uptime")
    store.restore_from_s3()
    return Reaper(store, name="test", queues=[TRAIN_QUEUE], wake_fn=woken)


def test_a_job_whose_lease_ran_out_is_queued_and_woken_and_a_live_one_left_alone(
    reaper: Reaper, store: RecordStore, woken: Woken
) -> None:
    lost, _ = make_job(store, JobStatus.running)
    alive, _ = make_job(store, JobStatus.running)
    store.redis.delete(f"lease:{lost.id}")
    reaper.sweep()
    assert woken == [lost.id]
    after = store.get(lost.id)
    assert (after.status, after.attempt) == (JobStatus.queued, 2)
    assert "no sign of life" in (after.error or "")
    assert store.get(alive.id).status is JobStatus.running


def test_after_a_restart_of_redis_holders_get_time_to_come_back(store: RecordStore, woken: Woken) -> None:
    record, _ = make_job(store, JobStatus.running)
    store.redis.delete(f"lease:{record.id}")
    old = RecordStore(store.redis, store.artifacts, store.settings.model_copy(update={"lease_s": 1e6}))
    Reaper(old, name="test", queues=[], wake_fn=woken).sweep()
    assert store.get(record.id).status is JobStatus.running


def test_a_waiting_job_without_a_message_gets_a_new_one_once(
    store: RecordStore, settings: Settings, reaper: Reaper, woken: Woken, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, _ = make_job(store, JobStatus.queued)
    heard, _ = make_job(store, JobStatus.queued)
    with make_app(settings) as app:
        wake(app, JobKind.train, heard.id)
    reaper.sweep()
    assert woken == []  # it may be on its way
    start = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: start + settings.lease_s + 1)
    reaper.sweep()
    reaper.sweep()
    assert woken == [silent.id]


def test_a_message_too_many_of_one_job_wakes_a_trainer_for_another(
    store: RecordStore, settings: Settings, reaper: Reaper, woken: Woken, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_job(store, JobStatus.queued)
    running, _ = make_job(store, JobStatus.running)
    with make_app(settings) as app:
        wake(app, JobKind.train, running.id)
    reaper.sweep()
    start = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: start + settings.lease_s + 1)
    reaper.sweep()
    assert woken == []


def test_waiting_jobs_of_every_kind_get_their_message(
    store: RecordStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[tuple[str, str]] = []
    reaper = Reaper(store, name="test", queues=[TRAIN_QUEUE], wake_fn=lambda *job: woken.append(job))
    waiting = [(kind, store.create(kind, {}).id) for kind in (JobKind.train, JobKind.calibrate)]
    reaper.sweep()
    start = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: start + settings.lease_s + 1)
    reaper.sweep()
    assert woken == waiting


def test_a_wiped_redis_is_refilled(store: RecordStore, reaper: Reaper) -> None:
    record, _ = make_job(store, JobStatus.queued)
    store.redis.flushall()
    reaper.sweep()
    assert store.get(record.id).status is JobStatus.queued
    assert store.queue_position(record) == 1


def test_copies_that_storage_did_not_take_are_delivered_later(
    store: RecordStore, reaper: Reaper, settings: Settings
) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    away = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    RecordStore(store.redis, Artifacts.connect(away), away).fail(lease, "why")
    reaper.sweep()
    reaper.sweep()
    assert store.unsaved_ids() == []
    store.redis.flushall()
    store.restore_from_s3()
    assert store.get(record.id).error == "why"


def test_one_reaper_sweeps_and_another_takes_over(store: RecordStore, reaper: Reaper, woken: Woken) -> None:
    second = Reaper(store, name="second", queues=[], wake_fn=woken)
    reaper.start()
    wait_until(lambda: store.redis.get(REAPER_LOCK) == b"test", "the first sweep")
    second.start()
    time.sleep(0.7)
    assert store.redis.get(REAPER_LOCK) == b"test"
    reaper.stop()
    wait_until(lambda: store.redis.get(REAPER_LOCK) == b"second", "the takeover")
    second.stop()
    assert store.redis.get(REAPER_LOCK) is None

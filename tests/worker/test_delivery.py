"""Spool, telemetry and watch: what stands between a training and stores that may be away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.servers import PATIENCE_S, Valkey, running_valkey, wait_until
from tests.worker.conftest import make_job
from worker.connect import redis_client
from worker.ids import new_id
from worker.jobs.event import NoticeEvent
from worker.jobs.record import JobNotFound, JobStatus, Lease, Progress, StaleLease
from worker.jobs.records import RecordStore
from worker.settings import Settings
from worker.storage.artifacts import Artifacts
from worker.trainer.spool import MAX_WAITING, Spool, UndeliveredError, deliver_leftovers, remove_finished
from worker.trainer.telemetry import Telemetry
from worker.trainer.watch import StopReason, Watch


class Gate(Artifacts):
    """The real bucket behind a connection that can be cut: while it is, calls go to a closed port."""

    def __init__(self, settings: Settings) -> None:
        self.open = Artifacts.connect(settings)
        self.cut = Artifacts.connect(settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"}))
        super().__init__(self.open._client, settings.s3_bucket)

    def set_reachable(self, reachable: bool) -> None:
        self._client = (self.open if reachable else self.cut)._client


@pytest.fixture
def gate(settings: Settings, s3: Artifacts) -> Gate:
    assert s3.list_models() == []
    return Gate(settings)


def _write(directory: Path) -> None:
    (directory / "ema.safetensors").write_bytes(b"weights")


LEASE = Lease(job_id=new_id(), token=17, worker="w@test")


def _holds() -> None:
    """The lease is ours."""


def _spool(
    artifacts: Artifacts,
    directory: Path,
    model_id: str,
    committed: list[int],
    confirm_fn: Callable[[], None] = _holds,
) -> Spool:
    spool = Spool(
        artifacts,
        lease=LEASE,
        model_id=model_id,
        directory=directory,
        on_checkpoint=lambda checkpoint: committed.append(checkpoint.step),
        on_grid=lambda *_: None,
        confirm_fn=confirm_fn,
    )
    spool.start()
    return spool


def test_checkpoints_are_announced_once_they_are_committed(gate: Gate, tmp_path: Path) -> None:
    model_id, committed = new_id(), list[int]()
    spool = _spool(gate, tmp_path, model_id, committed)
    for step in (1, 2):
        spool.add_checkpoint(step, _write)
    spool.add_grid(2, np.zeros((4, 1, 8, 8), np.float32))
    spool.flush(PATIENCE_S)
    assert committed == [1, 2]
    assert [checkpoint.step for checkpoint in gate.list_checkpoints(model_id)] == [1, 2]
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_offered_twice_is_delivered_once(gate: Gate, tmp_path: Path) -> None:
    model_id, committed = new_id(), list[int]()
    gate.set_reachable(False)
    spool = _spool(gate, tmp_path, model_id, committed)
    for _ in range(2):
        spool.add_checkpoint(7, _write)
    wait_until(lambda: list(tmp_path.glob("checkpoint-7")), "writing to disk")
    gate.set_reachable(True)
    spool.flush(PATIENCE_S)
    assert committed == [7]


def test_a_checkpoint_names_its_lease_and_one_of_a_lost_lease_is_never_committed(
    watched: tuple[Watch, Lease], store: RecordStore, tmp_path: Path
) -> None:
    watch, lease = watched
    model_id, committed = new_id(), list[int]()
    spool = _spool(store.artifacts, tmp_path, model_id, committed, watch.confirm)
    spool.add_checkpoint(1, _write)
    wait_until(lambda: committed == [1], "the first commit")
    store.save_copy(lease.job_id)
    store.redis.delete(f"job:{lease.job_id}")  # a wiped Redis: nobody knows, until it is refilled
    spool.add_checkpoint(2, _write)
    time.sleep(1)
    assert committed == [1]
    store.restore_from_s3()
    wait_until(lambda: committed == [1, 2], "the second commit")
    store.requeue(lease, "elsewhere")
    assert store.acquire_lease(lease.job_id, "second@worker") is not None
    spool.add_checkpoint(3, _write)
    spool.flush(PATIENCE_S)
    assert [checkpoint.step for checkpoint in store.artifacts.list_checkpoints(model_id)] == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


class Forgetful(RecordStore):
    """Loses every job right before it is asked whose one is, and has them back right after it has answered."""

    def check(self, lease: Lease) -> bool:
        self.save_copy(lease.job_id)
        self.redis.delete(f"job:{lease.job_id}")
        try:
            return super().check(lease)
        finally:
            self.restore_from_s3()


def test_a_record_that_comes_back_while_a_refusal_is_looked_into_costs_no_lease(store: RecordStore) -> None:
    _, lease = make_job(store, JobStatus.running)
    assert lease is not None
    watch = Watch(Forgetful(store.redis, store.artifacts, store.settings), lease)
    with pytest.raises(JobNotFound):
        watch.confirm()
    watch._look()
    assert watch.reason is None


def test_storage_that_is_away_delays_checkpoints_and_loses_none(gate: Gate, tmp_path: Path) -> None:
    model_id, committed = new_id(), list[int]()
    gate.set_reachable(False)
    spool = _spool(gate, tmp_path, model_id, committed)
    for step in (1, 2, 3):
        spool.add_checkpoint(step, _write)
    wait_until(lambda: len(list(tmp_path.glob("checkpoint-*"))) == 3, "writing to disk")
    assert committed == []
    gate.set_reachable(True)
    spool.flush(PATIENCE_S)
    assert committed == [1, 2, 3]


def test_a_disk_does_not_fill_up_while_storage_is_away_and_the_next_attempt_delivers(
    gate: Gate, tmp_path: Path
) -> None:
    model_id, committed = new_id(), list[int]()
    gate.set_reachable(False)
    spool = _spool(gate, tmp_path / "job" / "1", model_id, committed)
    for step in range(1, 8):
        spool.add_checkpoint(step, _write)
    with pytest.raises(UndeliveredError, match="checkpoint"):
        spool.flush(0.1)
    (tmp_path / "job" / "1" / ".partial-9").mkdir()
    gate.set_reachable(True)
    assert deliver_leftovers(gate, LEASE, model_id, tmp_path / "job", _holds) == MAX_WAITING
    assert [checkpoint.step for checkpoint in gate.list_checkpoints(model_id)] == [4, 5, 6, 7]
    assert deliver_leftovers(gate, LEASE, model_id, tmp_path / "job", _holds) == 0


def test_a_worker_frees_its_disk_of_jobs_that_ended_elsewhere(store: RecordStore, tmp_path: Path) -> None:
    ended, _ = make_job(store, JobStatus.failed)
    waiting, _ = make_job(store, JobStatus.queued)
    for name in (ended.id, waiting.id, new_id(), "lost+found"):
        (tmp_path / "jobs" / name / "1").mkdir(parents=True)
    remove_finished(store, tmp_path)
    assert not (tmp_path / "jobs" / ended.id).exists()
    assert len(list((tmp_path / "jobs").iterdir())) == 3


def test_a_checkpoint_that_cannot_be_written_is_no_silent_loss(gate: Gate, tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        raise OSError(28, "No space left on device", str(directory))

    spool = _spool(gate, tmp_path, new_id(), [])
    spool.add_checkpoint(1, fail)
    with pytest.raises(UndeliveredError, match="No space left"):
        spool.flush(PATIENCE_S)


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """One that a test may stop and start."""
    with running_valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def own_store(own_valkey: Valkey, settings: Settings, s3: Artifacts) -> Iterator[RecordStore]:
    changed = settings.model_copy(update={"redis_url": own_valkey.url})
    redis = redis_client(changed)
    yield RecordStore(redis, s3, changed)
    redis.close()


def test_telemetry_never_waits_and_delivers_in_order_when_redis_is_back(
    own_store: RecordStore, own_valkey: Valkey
) -> None:
    record, lease = make_job(own_store, JobStatus.running)
    assert lease is not None
    time.sleep(1.1)  # Valkey syncs its log every second
    telemetry = Telemetry(own_store, lease)
    telemetry.start()
    own_valkey.stop()
    started_at = time.monotonic()
    for step in range(50):
        telemetry.event(NoticeEvent(text=str(step)))
    telemetry.progress(Progress(step=49), 0.5)
    assert time.monotonic() - started_at < 0.5
    own_valkey.start()
    telemetry.close(PATIENCE_S)
    told = [event.data["text"] for event in own_store.read_events(record.id) if event.type == "notice"]
    assert told == [str(step) for step in range(50)]
    assert own_store.get(record.id).progress.step == 49
    assert telemetry.dropped == 0


def test_telemetry_of_a_stale_lease_is_refused_without_a_fuss(store: RecordStore) -> None:
    record, lease = make_job(store, JobStatus.failed)
    assert lease is not None
    telemetry = Telemetry(store, lease)
    telemetry.start()
    telemetry.event(NoticeEvent(text="1"))
    telemetry.close(PATIENCE_S)
    assert all(event.type == "status" for event in store.read_events(record.id))
    assert telemetry.dropped == 1


@pytest.fixture
def watched(store: RecordStore) -> Iterator[tuple[Watch, Lease]]:
    _, lease = make_job(store, JobStatus.running)
    assert lease is not None
    watch = Watch(store, lease)
    watch.start()
    yield watch, lease
    watch.close()


def test_a_training_learns_of_cancel(watched: tuple[Watch, Lease], store: RecordStore) -> None:
    watch, lease = watched
    assert not watch.should_stop()
    store.request_cancel(lease.job_id)
    wait_until(watch.should_stop, "notice")
    assert watch.reason is StopReason.cancelled


def test_a_training_whose_job_was_given_away_stops(watched: tuple[Watch, Lease], store: RecordStore) -> None:
    watch, lease = watched
    store.requeue(lease, "elsewhere")
    wait_until(watch.should_stop, "notice")
    assert watch.reason is StopReason.stale
    with pytest.raises(StaleLease):
        watch.confirm()


def test_a_training_pauses_while_redis_is_away_for_longer_than_its_lease_and_then_goes_on(
    own_store: RecordStore, own_valkey: Valkey
) -> None:
    short = own_store.settings.model_copy(update={"lease_s": 1.0})
    store = RecordStore(own_store.redis, own_store.artifacts, short)
    _, lease = make_job(store, JobStatus.running)
    assert lease is not None
    watch = Watch(store, lease)
    watch.start()
    time.sleep(1.1)  # Valkey syncs its log every second
    own_valkey.stop()
    time.sleep(1.3)
    answered = threading.Event()

    def ask() -> None:
        assert not watch.should_stop()
        answered.set()

    thread = threading.Thread(target=ask)
    thread.start()
    assert not answered.wait(0.5)
    own_valkey.start()
    assert answered.wait(PATIENCE_S)
    thread.join()
    watch.close()


def test_sigterm_stops_a_paused_training(store: RecordStore) -> None:
    _, lease = make_job(store, JobStatus.running)
    assert lease is not None
    watch = Watch(store, lease)
    watch._proven_at -= 1000
    thread = threading.Thread(target=watch.should_stop)
    thread.start()
    watch.interrupt()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert watch.reason is StopReason.interrupted

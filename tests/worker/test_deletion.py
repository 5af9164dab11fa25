"""Deleting jobs, models and checkpoints: what is in use stays, and of what goes nothing is left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.worker.conftest import calibration_spec, make_job, tiny_spec
from worker.ids import new_id
from worker.jobs.deletion import Deletions, InUse, Retention
from worker.jobs.kinds import JobKind
from worker.jobs.reaper import Reaper
from worker.jobs.record import IllegalTransition, JobNotFound, JobStatus, NeedsDeleted, StaleLease
from worker.jobs.records import RecordStore
from worker.redis_keys import JOB_PLACES
from worker.storage.artifacts import Artifacts, checkpoint_prefix, job_prefix, model_prefix
from worker.storage.bucket import Bucket
from worker.storage.shards import put_shard
from worker.trainer.watch import StopReason, Watch

pytestmark = pytest.mark.stack


@pytest.fixture
def quick(store: RecordStore) -> RecordStore:
    """A store whose deletions are settled by the first sweep."""
    return RecordStore(store.redis, store.artifacts, store.settings.model_copy(update={"deletion_grace_s": 0.0}))


@pytest.fixture
def deletions(quick: RecordStore) -> Deletions:
    quick.restore_from_s3()
    return Deletions(quick)


def store_model(s3: Artifacts, directory: Path, *steps: int, model_id: str | None = None) -> str:
    """A model with checkpoints whose weights nobody will read."""
    model_id = model_id or new_id()
    s3.put_model(model_id, {"name": "tests"})
    directory.mkdir(exist_ok=True)
    (directory / "ema.safetensors").write_bytes(b"weights")
    for step in steps:
        s3.commit_checkpoint(model_id, step, directory)
    return model_id


def stored(store: RecordStore) -> tuple[list[tuple[str, int]], dict[bytes, bytes | None]]:
    """All there is in S3 and in Redis, but what has been counted."""
    objects = [(key, size_bytes) for key, size_bytes, _ in store.artifacts.list_keys("")]
    return objects, {key: store.redis.dump(key) for key in store.redis.scan_iter() if key != b"jobs:tally"}


@pytest.mark.parametrize("status", [JobStatus.succeeded, JobStatus.failed, JobStatus.cancelled])
def test_nothing_is_left_of_a_deleted_job_and_its_model(
    deletions: Deletions, quick: RecordStore, s3: Artifacts, tmp_path: Path, status: JobStatus
) -> None:
    before = stored(quick)
    record, _ = make_job(quick, status)
    assert record.model_id is not None
    quick.redis.zadd(JOB_PLACES.of("key"), {record.id: 0})  # asked for with an API key
    store_model(s3, tmp_path / "checkpoint", 1, 2, model_id=record.model_id)
    s3.put_calibration(record.model_id, 2, {"log_z": 0})
    s3.put_sample_grid(record.id, 1, b"png")
    put_shard(s3, record.id, 0, b"npy")

    deletions.delete_job(record.id)
    assert s3.get_model(record.model_id) == {"name": "tests", "job_id": None}
    deletions.delete_model(record.model_id)
    assert [key for key, _, _ in s3.list_keys(model_prefix(record.model_id))] == []
    deletions.sweep()
    assert stored(quick) == before
    with pytest.raises(JobNotFound):
        deletions.delete_job(record.id)


def test_the_model_of_a_training_that_stored_no_checkpoint_goes_with_it(
    deletions: Deletions, quick: RecordStore, s3: Artifacts
) -> None:
    record, _ = make_job(quick, JobStatus.cancelled)
    assert record.model_id is not None
    s3.put_model(record.model_id, {"name": "tests"})
    s3.put_bytes(checkpoint_prefix(record.model_id, 3) + "0123.ema.safetensors", b"half an upload")
    deletions.delete_job(record.id)
    assert list(s3.list_keys("models/")) == []


@pytest.mark.parametrize("status", [JobStatus.queued, JobStatus.running])
def test_a_job_that_has_not_ended_is_not_deleted(deletions: Deletions, quick: RecordStore, status: JobStatus) -> None:
    record, _ = make_job(quick, status)
    before = stored(quick)
    with pytest.raises(IllegalTransition, match="cancel it first"):
        deletions.delete_job(record.id)
    assert stored(quick) == before


def test_a_model_is_not_deleted_while_a_job_makes_it_or_uses_it(
    deletions: Deletions, quick: RecordStore, s3: Artifacts, tmp_path: Path
) -> None:
    model_id = store_model(s3, tmp_path / "checkpoint", 20)
    training = quick.create(JobKind.train, tiny_spec(), model_id=model_id)
    user = quick.create(JobKind.calibrate, calibration_spec(20), model_id=model_id)
    with pytest.raises(InUse) as refused:
        deletions.delete_model(model_id)
    assert refused.value.job_ids == [training.id, user.id]
    for record in (training, user):
        quick.request_cancel(record.id)
    deletions.delete_model(model_id)
    assert list(s3.list_keys("models/")) == []


def test_no_job_begins_on_a_model_that_is_being_deleted_nor_is_resumed(
    store: RecordStore, s3: Artifacts, tmp_path: Path
) -> None:
    store.restore_from_s3()
    model_id = store_model(s3, tmp_path / "checkpoint", 20)
    old = store.create(JobKind.calibrate, calibration_spec(20), model_id=model_id)
    store.request_cancel(old.id)
    Deletions(store).delete_model(model_id)
    with pytest.raises(NeedsDeleted):
        store.create(JobKind.calibrate, calibration_spec(20), model_id=model_id)
    with pytest.raises(NeedsDeleted):
        store.resume(old.id)
    assert [key for key, _, _ in s3.list_keys("jobs/") if key.endswith("job.json")] == [job_prefix(old.id) + "job.json"]


def test_a_redis_that_is_wiped_in_between_neither_brings_a_job_back_nor_leaves_anything(
    quick: RecordStore, s3: Artifacts
) -> None:
    record, _ = make_job(quick, JobStatus.failed)
    s3.put_tombstone(job_prefix(record.id))  # and there its process was killed
    quick.redis.flushall()
    with pytest.raises(JobNotFound):
        quick.find(record.id)
    assert quick.restore_from_s3() == 0
    Reaper(quick, name="test", queues=[], wake_fn=lambda *_: None).sweep()
    assert list(s3.list_keys("jobs/")) == list(s3.list_keys("deletions/")) == []
    assert quick.redis.keys("*deletions*") == []


def test_a_deletion_that_only_redis_knows_of_is_finished_by_the_reaper(
    deletions: Deletions, quick: RecordStore, s3: Artifacts, tmp_path: Path
) -> None:
    model_id = store_model(s3, tmp_path / "checkpoint", 20)
    deletions._decide(model_prefix(model_id), model_id)  # and there its process was killed
    assert s3.has_model(model_id)
    Reaper(quick, name="test", queues=[], wake_fn=lambda *_: None).sweep()
    assert list(s3.list_keys("models/")) == list(s3.list_keys("deletions/")) == []


def test_what_a_slow_process_writes_after_a_deletion_is_swept_when_it_is_settled(
    store: RecordStore, s3: Artifacts
) -> None:
    record, _ = make_job(store, JobStatus.succeeded)
    Deletions(store).delete_job(record.id)
    put_shard(s3, record.id, 0, b"npy")
    s3.put_bytes(job_prefix(record.id) + "job.json", record.model_dump_json().encode())
    with pytest.raises(JobNotFound):
        store.find(record.id)
    Deletions(store).sweep()
    assert list(s3.list_keys("jobs/")) == []
    assert s3.list_tombstones() == [job_prefix(record.id)]


def test_who_still_works_on_a_job_that_was_deleted_learns_that_it_is_lost(store: RecordStore) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    store.cancel(lease)
    Deletions(store).delete_job(record.id)
    watch = Watch(store, lease)
    with pytest.raises(StaleLease):
        watch.confirm()
    assert watch.reason is StopReason.stale


def test_retention_keeps_the_newest_every_so_manieth_the_calibrated_and_the_one_to_go_back_to() -> None:
    steps = [10, 20, 30, 40, 50, 60, 64, 66]
    assert Retention(keep_last=2, keep_every=3).expired(steps, [10], 10) == [20, 40, 50]
    assert Retention(keep_last=1, keep_every=100).expired(steps, [], 10) == [10, 20, 30, 40, 50, 64]
    assert Retention(keep_last=1, keep_every=1).expired(steps, [], 10) == [64]
    assert Retention(keep_last=9, keep_every=9).expired(steps, [], 10) == []
    assert Retention(keep_last=1, keep_every=1).expired([], [], 10) == []


def test_a_checkpoint_that_a_waiting_job_needs_is_not_thinned_out(
    deletions: Deletions, quick: RecordStore, s3: Artifacts, tmp_path: Path
) -> None:
    model_id = store_model(s3, tmp_path / "checkpoint", 1, 2, 3, 4)
    s3.put_calibration(model_id, 1, {"log_z": 0})
    quick.create(JobKind.train, tiny_spec(), model_id=model_id)
    quick.create(JobKind.calibrate, calibration_spec(2), model_id=model_id)
    assert deletions.thin_out(model_id, Retention(keep_last=1, keep_every=100), 1) == [3]
    assert [checkpoint.step for checkpoint in s3.list_checkpoints(model_id)] == [1, 2, 4]
    assert list(s3.list_keys(checkpoint_prefix(model_id, 3))) == []
    assert s3.list_tombstones() == []


class Killed(Exception):
    """Stands for the end of a process."""


def kill_after(monkeypatch: pytest.MonkeyPatch, num_calls: int) -> None:
    """Let so many objects be written or removed, and no more."""
    left = iter(range(num_calls))

    def counted(method: Callable[..., None]) -> Callable[..., None]:
        def call(bucket: Bucket, *arguments: Any) -> None:
            if next(left, None) is None:
                raise Killed
            method(bucket, *arguments)

        return call

    for name in ("put_bytes", "delete"):
        monkeypatch.setattr(Bucket, name, counted(getattr(Bucket, name)))


@pytest.mark.parametrize("what", ["job", "model"])
@pytest.mark.parametrize("is_wiped", [False, True])
@pytest.mark.parametrize("num_calls", [1, 2, 3, 5])
def test_a_deletion_whose_process_is_killed_anywhere_is_never_seen_half_and_is_finished(
    deletions: Deletions, quick: RecordStore, s3: Artifacts, tmp_path: Path, what: str, is_wiped: bool, num_calls: int
) -> None:
    before = stored(quick)[0]
    record, _ = make_job(quick, JobStatus.succeeded)
    assert record.model_id is not None
    store_model(s3, tmp_path / "checkpoint", 1, 2, model_id=record.model_id)
    for step in range(4):
        s3.put_sample_grid(record.id, step, b"png")
    delete: dict[str, Callable[[], None]] = {
        "job": lambda: deletions.delete_job(record.id),
        "model": lambda: deletions.delete_model(str(record.model_id)),
    }
    with pytest.MonkeyPatch.context() as patched, contextlib.suppress(Killed):
        kill_after(patched, num_calls)
        delete.pop(what)()
    if is_wiped:
        quick.redis.flushall()

    if what == "job":
        with pytest.raises(JobNotFound):
            quick.find(record.id)
    for one in s3.list_checkpoints(record.model_id):
        s3.fetch_checkpoint(record.model_id, one.step, tmp_path / f"whole-{one.step}")
    Reaper(quick, name="test", queues=[], wake_fn=lambda *_: None).sweep()
    (delete_other,) = delete.values()
    delete_other()
    deletions.sweep()
    assert stored(quick)[0] == before
    assert quick.list().records == []

"""Real training subprocesses under a supervisor in this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from model.config import ChainConfig, OptimizerConfig
from model.events import HealthEvent
from model.intake.limits import Summary
from tests.conftest import environment_of
from tests.servers import SeaweedFS, wait_until
from tests.worker.conftest import Attempt, calibration_spec, tiny_spec
from worker.ids import new_id
from worker.jobs.kinds import JobKind
from worker.jobs.record import JobRecord, JobStatus, Lease
from worker.jobs.records import RecordStore
from worker.settings import Settings
from worker.storage.artifacts import Artifacts
from worker.storage.datasets import DatasetStore, Upload

LONG = {"steps": 1_000_000, "checkpoint_every": 50}


pytestmark = pytest.mark.usefixtures("for_subprocesses")


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    yield
    assert trainings() == []


def trainings() -> list[psutil.Process]:
    """Subprocesses of jobs of this process."""
    return [child for child in psutil.Process().children() if "worker.trainer.attempt" in child.cmdline()]


def _training(store: RecordStore, **changes: object) -> JobRecord:
    return store.create(JobKind.train, tiny_spec(**changes))


def _started(s3: Artifacts, record: JobRecord) -> None:
    assert record.model_id is not None
    model_id = record.model_id
    wait_until(lambda: s3.newest_step(model_id), "the first checkpoint")


def test_a_job_delivered_twice_is_trained_once_and_leaves_its_model(
    store: RecordStore, s3: Artifacts, settings: Settings
) -> None:
    record = _training(store, sample_every=30)
    ends = [attempt.end() for attempt in (Attempt(store), Attempt(store))]
    assert Attempt(store).end() is None
    (ended,) = [end for end in ends if end is not None]
    assert (ended.status, ended.error, ended.last_checkpoint) == (JobStatus.succeeded, None, 60)
    assert ended.progress.step == ended.progress.total_steps == 60
    assert ended.model_id is not None
    assert [checkpoint.step for checkpoint in s3.list_checkpoints(ended.model_id)] == [20, 40, 60]
    assert s3.list_sample_grids(record.id) == [30, 60]
    assert s3.get_model(ended.model_id)["job_id"] == record.id
    events = store.read_events(record.id)
    assert [event.type for event in events].count("started") == 1
    assert [event.data["step"] for event in events if event.type == "checkpoint"] == [20, 40, 60]
    assert [event.data["step"] for event in events if event.type == "step"] == [10, 20, 30, 40, 50, 60]
    assert events[-1].data["status"] == "succeeded"
    assert list((settings.spool_dir / "jobs").iterdir()) == []


def test_a_bfloat16_training_says_where_the_processor_is_slow_at_it(store: RecordStore) -> None:
    record = _training(store, precision="bfloat16")
    ended = Attempt(store).end()
    assert ended is not None
    assert ended.status is JobStatus.succeeded
    notices = [event.data["text"] for event in store.read_events(record.id) if event.type == "notice"]
    has = torch.cpu.get_capabilities()
    slow = has["architecture"] == "x86_64" and not has["amx_bf16"]
    assert ["no AMX" in text for text in notices] == ([True] if slow else [])


def test_a_training_whose_chains_reject_nearly_all_says_so_in_its_events_and_its_record(store: RecordStore) -> None:
    chain = ChainConfig(kernel="mala", num_steps=1, step_size=10.0, target_acceptance=None)
    record = _training(store, chain=chain, steps=110)
    ended = Attempt(store).end()
    assert ended is not None
    assert ended.status is JobStatus.succeeded
    told = [event.data for event in store.read_events(record.id) if event.type == "health"]
    assert [(data["step"], data["level"]) for data in told] == [(100, "red"), (110, "red")]
    assert "target_acceptance" in told[-1]["remedy"]
    assert ended.health == HealthEvent(**told[-1])


def test_cancel_stops_a_training_at_a_checkpoint_that_resume_goes_on_from(store: RecordStore, s3: Artifacts) -> None:
    record = _training(store, **LONG)
    attempt = Attempt(store)
    _started(s3, record)
    store.request_cancel(record.id)
    cancelled = attempt.end()
    assert cancelled is not None
    assert cancelled.status is JobStatus.cancelled
    step = cancelled.last_checkpoint
    assert step is not None
    assert step >= cancelled.progress.step
    store.resume(record.id, spec=tiny_spec(steps=step + 30, checkpoint_every=50))
    resumed = Attempt(store).end()
    assert resumed is not None
    assert (resumed.status, resumed.last_checkpoint) == (JobStatus.succeeded, step + 30)
    started = [event.data["step"] for event in store.read_events(record.id, limit=10_000) if event.type == "started"]
    assert started == [0, step]


def test_a_shutdown_checkpoints_and_queues_the_job_without_counting_the_attempt(
    store: RecordStore, s3: Artifacts
) -> None:
    record = _training(store, **LONG)
    attempt = Attempt(store)
    _started(s3, record)
    attempt.stop.set()
    queued = attempt.end()
    assert queued is not None
    assert (queued.status, queued.attempt) == (JobStatus.queued, 1)
    assert attempt.woken == [(record.kind, record.id)]
    assert queued.last_checkpoint is not None
    assert queued.last_checkpoint % 50 != 0 or queued.last_checkpoint >= queued.progress.step


def test_a_killed_training_is_tried_again_and_fails_at_the_limit_with_the_reason(
    store: RecordStore, s3: Artifacts
) -> None:
    twice = RecordStore(store.redis, s3, store.settings.model_copy(update={"attempt_limit": 2}))
    record = _training(twice, **LONG)
    for expected in (JobStatus.queued, JobStatus.failed):
        attempt = Attempt(twice)
        wait_until(lambda: twice.read_events(record.id)[-1].type == "step", "training")
        (child,) = trainings()
        child.send_signal(signal.SIGKILL)
        ended = attempt.end()
        assert ended is not None
        assert ended.status is expected
        assert "killed by SIGKILL, most likely because the machine ran out of memory" in (ended.error or "")
    assert twice.get(record.id).attempt == 2


def test_a_training_whose_supervisor_lost_the_job_is_ended_at_once(store: RecordStore, s3: Artifacts) -> None:
    record = _training(store, **LONG)
    attempt = Attempt(store)
    _started(s3, record)
    store.requeue(Lease(job_id=record.id, token=store.get(record.id).fence, worker="w@test"), "taken away")
    assert attempt.end() is None
    assert (store.get(record.id).status, attempt.woken) == (JobStatus.queued, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "absent.npy"}, "there is no dataset 'absent.npy'"),
        ({"dataset": "../../etc/passwd"}, "there is no dataset"),
    ],
)
def test_a_job_that_cannot_run_fails_with_the_reason(store: RecordStore, changes: dict[str, str], words: str) -> None:
    _training(store, **changes)
    ended = Attempt(store).end()
    assert ended is not None
    assert ended.status is JobStatus.failed
    assert words in (ended.error or "")


def test_a_value_far_from_all_others_ends_a_training_before_its_first_step_unless_it_is_meant(
    store: RecordStore, s3: Artifacts, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    rows[7, 1] = 1e8
    np.save(tmp_path / "far.npy", rows)
    upload = Upload(name=None, file_name="far.npy", sha256="0" * 64, size_bytes=1)
    summary = Summary(kind="vectors", count=100, event_shape=(2,))
    dataset = DatasetStore(s3).add(tmp_path / "far.npy", summary, upload).id
    record = _training(store, dataset=dataset)
    ended = Attempt(store).end()
    assert ended is not None
    assert ended.status is JobStatus.failed
    assert "1e+08 in row 7, column 1" in (ended.error or "")
    assert "raise max_deviation" in (ended.error or "")
    assert not [event for event in store.read_events(record.id) if event.type in ("started", "step")]
    _training(store, dataset=dataset, max_deviation=None)
    meant = Attempt(store).end()
    assert meant is not None
    assert (meant.status, meant.error) == (JobStatus.succeeded, None)


def test_a_training_that_diverges_goes_back_three_times_and_then_fails_with_the_reason(store: RecordStore) -> None:
    record = _training(store, optimizer=OptimizerConfig(learning_rate=1.0, warmup_steps=0, max_gradient_norm=None))
    ended = Attempt(store).end()
    assert ended is not None
    assert ended.status is JobStatus.failed
    assert "training diverged at step" in (ended.error or "")
    told = [event.data for event in store.read_events(record.id) if event.type == "rollback"]
    assert [(data["rollbacks"], data["learning_rate_factor"]) for data in told] == [(1, 0.5), (2, 0.25), (3, 0.125)]


def test_a_broken_environment_is_told_from_the_output_without_secrets(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    assert settings.s3_secret_key is not None
    secret = settings.s3_secret_key.get_secret_value()
    monkeypatch.setenv("RECOVERY_LEASE_S", secret)  # pydantic quotes the value it refuses
    _training(store)
    ended = Attempt(store).end()
    assert ended is not None
    assert ended.status is JobStatus.failed
    assert "lease_s" in (ended.error or "")
    assert secret not in (ended.error or "")


def test_training_goes_on_while_storage_is_away(store: RecordStore, s3: Artifacts, seaweedfs: SeaweedFS) -> None:
    record = _training(store, steps=1000, checkpoint_every=250, log_every=50)
    attempt = Attempt(store)
    wait_until(lambda: store.read_events(record.id)[-1].type == "step", "training")
    seaweedfs.stop()
    try:
        wait_until(lambda: store.get(record.id).progress.step == 1000, "the last step")
        assert store.get(record.id).status is JobStatus.running
    finally:
        seaweedfs.start()
    ended = attempt.end()
    assert ended is not None
    assert ended.status is JobStatus.succeeded
    assert ended.model_id is not None
    assert s3.newest_step(ended.model_id) == 1000


def _trained(store: RecordStore, **changes: object) -> str:
    """The id of a model with a checkpoint of step 20, near enough to a Gaussian for its log Z to be known."""
    _training(store, steps=20, energy="log_snr", **changes)
    ended = Attempt(store).end()
    assert ended is not None
    assert (ended.status, ended.error) == (JobStatus.succeeded, None)
    assert ended.model_id is not None
    return ended.model_id


def test_a_calibration_stores_both_sides_and_the_held_out_score_and_tells_every_round(
    store: RecordStore, s3: Artifacts
) -> None:
    model_id = _trained(store)
    assert s3.list_calibrations(model_id) == []
    record = store.create(JobKind.calibrate, calibration_spec(max_bridges=2, tolerance=1e-6), model_id=model_id)
    ended = Attempt(store).end()
    assert ended is not None
    assert (ended.status, ended.error, ended.model_id) == (JobStatus.succeeded, None, model_id)
    assert (ended.progress.step, ended.progress.total_steps, ended.progress.percent) == (2, 2, 100)
    assert s3.list_calibrations(model_id) == [20]
    stored = s3.get_calibration(model_id, 20)
    events = store.read_events(record.id)
    rounds = [event.data for event in events if event.type == "calibration"]
    assert [(data["round"], data["num_bridges"], data["num_chains"]) for data in rounds] == [(1, 1, 64), (2, 2, 64)]
    assert stored["log_z"]["estimate"] == pytest.approx(rounds[-1]["estimate"])
    assert stored["event_shape"] == [2]
    assert stored["num_held_out"] > 0
    assert [event.type for event in events][-2:] == ["calibrated", "status"]


def test_a_training_that_calibrates_ends_with_its_last_checkpoint_calibrated(store: RecordStore, s3: Artifacts) -> None:
    record = _training(store, steps=20, calibrate=True)
    ended = Attempt(store).end()
    assert ended is not None
    assert (ended.status, ended.progress.step, ended.last_checkpoint) == (JobStatus.succeeded, 20, 20)
    assert ended.model_id is not None
    assert s3.list_calibrations(ended.model_id) == [20]
    types = [event.type for event in store.read_events(record.id)]
    assert types.index("checkpoint") < types.index("calibration") < types.index("calibrated")


ENDLESS: dict[str, Any] = {"num_chains": 512, "max_chains": 512, "max_bridges": 4096, "tolerance": 1e-6}


def test_a_calibration_is_cancelled_within_a_move_and_stores_nothing(store: RecordStore, s3: Artifacts) -> None:
    model_id = _trained(store)
    record = store.create(JobKind.calibrate, calibration_spec(**ENDLESS), model_id=model_id)
    attempt = Attempt(store)
    wait_until(lambda: store.get(record.id).progress.step >= 2, "two rounds", timeout_s=120)
    store.request_cancel(record.id)
    cancelled = attempt.end()
    assert cancelled is not None
    assert (cancelled.status, cancelled.error) == (JobStatus.cancelled, None)
    assert s3.list_calibrations(model_id) == []
    store.resume(record.id, spec=calibration_spec(max_bridges=1))
    resumed = Attempt(store).end()
    assert resumed is not None
    assert resumed.status is JobStatus.succeeded
    assert s3.list_calibrations(model_id) == [20]


def test_a_shutdown_puts_a_calibration_back_into_the_queue(store: RecordStore) -> None:
    model_id = _trained(store)
    record = store.create(JobKind.calibrate, calibration_spec(**ENDLESS), model_id=model_id)
    attempt = Attempt(store)
    wait_until(lambda: store.get(record.id).progress.step >= 1, "a round", timeout_s=120)
    attempt.stop.set()
    queued = attempt.end()
    assert queued is not None
    assert (queued.status, queued.attempt) == (JobStatus.queued, 1)
    assert attempt.woken == [(record.kind, record.id)]


def test_a_training_interrupted_while_it_calibrates_keeps_its_checkpoint_and_calibrates_in_the_next_attempt(
    store: RecordStore, s3: Artifacts
) -> None:
    record = _training(store, steps=20, calibrate=True)
    attempt = Attempt(store)
    wait_until(
        lambda: "checkpoint" in [e.type for e in store.read_events(record.id)], "the last checkpoint", timeout_s=120
    )
    attempt.stop.set()
    queued = attempt.end()
    assert queued is not None
    assert (queued.status, queued.attempt, queued.last_checkpoint) == (JobStatus.queued, 1, 20)
    assert queued.model_id is not None
    assert s3.list_calibrations(queued.model_id) == []
    ended = Attempt(store).end()
    assert ended is not None
    assert ended.status is JobStatus.succeeded
    assert s3.list_calibrations(queued.model_id) == [20]


def test_a_calibration_of_a_checkpoint_that_is_gone_fails_with_the_reason(store: RecordStore) -> None:
    store.create(JobKind.calibrate, calibration_spec(), model_id=new_id())
    ended = Attempt(store).end()
    assert ended is not None
    assert ended.status is JobStatus.failed
    assert "is not in storage" in (ended.error or "")


def test_settings_reach_a_subprocess_unchanged(settings: Settings, tmp_path: Path) -> None:
    changed = settings.model_copy(update={"datasets_dir": tmp_path})
    before = dict(os.environ)
    os.environ.update(environment_of(changed))
    try:
        assert Settings() == changed
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_a_training_keeps_as_many_checkpoints_as_it_is_told_to(store: RecordStore, s3: Artifacts) -> None:
    store.restore_from_s3()
    record = store.create(JobKind.train, {**tiny_spec(steps=100, checkpoint_every=10), "keep_last": 2, "keep_every": 4})
    ended = Attempt(store).end()
    assert ended is not None
    assert (ended.status, ended.error) == (JobStatus.succeeded, None)
    assert record.model_id is not None
    events = store.read_events(record.id, limit=10_000)
    # Which checkpoints are stored depends on how fast storage is: the spool drops what it has no room for.
    stored = [event.data["step"] for event in events if event.type == "checkpoint"]
    kept = [step for step in stored if step % 40 == 0 or step in stored[-2:]]
    told = [event.data for event in events if event.type == "deleted"]
    assert [checkpoint.step for checkpoint in s3.list_checkpoints(record.model_id)] == kept
    assert told[0] == {"steps": stored[:1], "keep_last": 2, "keep_every": 4}
    assert {step for data in told for step in data["steps"]} <= set(stored) - set(kept)
    assert s3.list_tombstones() == []

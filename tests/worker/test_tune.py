"""Tuning as a job, and at the end of a training: what samples cost is measured and lies beside the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from model.checkpoints.checkpoint import read_snapshot
from model.config import SamplingConfig, TrainConfig, to_dict
from model.frontier import Frontier, TuneConfig
from tests.servers import wait_until
from tests.stored import STEP, store_untrained
from tests.worker.conftest import Attempt, tiny_config, tiny_spec
from worker.jobs.deletion import Deletions, Retention
from worker.jobs.kinds import JobKind
from worker.jobs.record import JobRecord, JobStatus
from worker.jobs.records import RecordStore
from worker.storage.artifacts import ArtifactMissing, Artifacts

pytestmark = pytest.mark.usefixtures("for_subprocesses")


def _config() -> TrainConfig:
    return tiny_config(sampling=SamplingConfig(num_steps=3, start="neighbour"))


def tune_spec(**changes: Any) -> dict[str, Any]:
    """The spec of a tuning of a second."""
    config = TuneConfig(**{"num_samples": 200, "max_steps": 2, **changes})
    return {"config": to_dict(config), "step": STEP, "device": "cpu"}


def _ended(store: RecordStore) -> JobRecord:
    ended = Attempt(store).end(200)
    assert ended is not None
    return ended


def test_a_tuning_measures_every_setting_and_stores_the_frontier(store: RecordStore, s3: Artifacts) -> None:
    model_id = store_untrained(s3, _config())
    size_bytes = s3.list_checkpoints(model_id)[0].size_bytes
    record = store.create(JobKind.tune, tune_spec(), model_id=model_id)
    ended = _ended(store)
    assert (ended.status, ended.error) == (JobStatus.succeeded, None)
    assert (ended.progress.step, ended.progress.total_steps, ended.progress.percent) == (4, 4, 100)
    frontier = Frontier.from_dict(s3.get_frontier(model_id, STEP))
    found = [(point.start, point.num_steps, point.evaluations) for point in frontier.points]
    assert found == [("multistep", 0, 2), ("multistep", 1, 5), ("multistep", 2, 8), ("neighbour", 3, 9)]
    assert all(np.isfinite([point.frechet, point.frechet_error]).all() for point in frontier.points)
    assert (frontier.step, frontier.num_samples, frontier.features, frontier.num_features) == (STEP, 200, "data", 2)
    [checkpoint] = s3.list_checkpoints(model_id)
    assert checkpoint.has_frontier
    assert checkpoint.size_bytes == size_bytes
    events = [event for event in store.read_events(record.id) if event.type in ("tuning", "tuned")]
    assert [event.data.get("index") for event in events] == [1, 2, 3, 4, None]
    assert events[0].data["point"]["start"] == "neighbour"  # the setting to beat comes first
    assert Frontier.from_dict(events[-1].data["frontier"]) == frontier


def test_a_tuning_that_is_killed_is_done_again_by_the_next_attempt(store: RecordStore, s3: Artifacts) -> None:
    model_id = store_untrained(s3, _config())
    record = store.create(JobKind.tune, tune_spec(num_samples=20_000), model_id=model_id)
    first = Attempt(store)
    wait_until(lambda: any(e.type == "tuning" for e in store.read_events(record.id)), "a measured setting")
    for process in psutil.Process().children():
        if record.id in process.cmdline():
            process.kill()
    killed = first.end(60)
    assert killed is not None
    assert killed.status is JobStatus.queued
    with pytest.raises(ArtifactMissing):
        s3.get_frontier(model_id, STEP)
    assert _ended(store).status is JobStatus.succeeded
    assert len(Frontier.from_dict(s3.get_frontier(model_id, STEP)).points) == 4


def test_a_cancelled_tuning_stores_nothing_and_can_be_resumed(store: RecordStore, s3: Artifacts) -> None:
    model_id = store_untrained(s3, _config())
    record = store.create(JobKind.tune, tune_spec(num_samples=50_000), model_id=model_id)
    attempt = Attempt(store)
    wait_until(lambda: any(e.type == "started" for e in store.read_events(record.id)), "its start")
    store.request_cancel(record.id)
    ended = attempt.end(60)
    assert ended is not None
    assert ended.status is JobStatus.cancelled
    assert not s3.list_checkpoints(model_id)[0].has_frontier
    store.resume(record.id, spec=tune_spec())
    assert _ended(store).status is JobStatus.succeeded


def test_a_frontier_goes_with_its_checkpoint(store: RecordStore, s3: Artifacts, tmp_path: Path) -> None:
    model_id = store_untrained(s3, _config())
    store.restore_from_s3()  # which says that no other job needs the checkpoint
    s3.put_frontier(model_id, STEP, {"version": 1})
    later = store_untrained(s3, _config())
    s3.fetch_checkpoint(later, STEP, (folder := tmp_path / "copy"))
    s3.commit_checkpoint(model_id, STEP + 1, folder)
    assert Deletions(store).thin_out(model_id, Retention(keep_last=1, keep_every=1000), 1) == [STEP]
    assert not any(True for _ in s3.list_keys(f"models/{model_id}/checkpoints/{STEP}/"))
    s3.put_frontier(model_id, STEP + 1, {"version": 1})
    Deletions(store).delete_model(model_id)
    assert not any(True for _ in s3.list_keys(f"models/{model_id}/"))


def test_a_model_of_unknown_data_cannot_be_tuned_and_says_why(
    store: RecordStore, s3: Artifacts, tmp_path: Path
) -> None:
    model_id = store_untrained(s3, _config())
    s3.fetch_checkpoint(model_id, STEP, tmp_path / "copy")
    snapshot = read_snapshot(tmp_path / "copy")
    replace(snapshot, step=STEP + 1, config=replace(snapshot.config, dataset="unknown")).write(tmp_path / "copy")
    s3.commit_checkpoint(model_id, STEP + 1, tmp_path / "copy")
    store.create(JobKind.tune, {**tune_spec(), "step": STEP + 1}, model_id=model_id)
    ended = _ended(store)
    assert ended.status is JobStatus.failed
    assert "not known what this model was trained on" in (ended.error or "")


def _training(store: RecordStore) -> JobRecord:
    store.create(JobKind.train, tiny_spec(tune=True, steps=20))
    return _ended(store)


def test_a_training_tunes_its_last_checkpoint(
    store: RecordStore, s3: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECOVERY_TUNING_SHARE", "1000")
    ended = _training(store)
    assert ended.status is JobStatus.succeeded
    assert ended.model_id is not None
    types = [event.type for event in store.read_events(ended.id)]
    assert types.index("checkpoint") < types.index("tuning") < types.index("tuned")
    frontier = Frontier.from_dict(s3.get_frontier(ended.model_id, 20))
    assert (frontier.num_samples, len(frontier.points)) == (500, 5)
    assert ended.progress.total_steps == 20  # the progress is that of the training


def test_a_training_without_time_for_it_is_not_tuned(
    store: RecordStore, s3: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECOVERY_TUNING_SHARE", "0")
    ended = _training(store)
    assert ended.status is JobStatus.succeeded
    assert ended.model_id is not None
    assert not s3.list_checkpoints(ended.model_id)[-1].has_frontier


def test_a_training_too_short_to_be_tuned_says_so(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECOVERY_TUNING_SHARE", "0.001")
    ended = _training(store)
    assert ended.status is JobStatus.succeeded
    told = [event.data["text"] for event in store.read_events(ended.id) if event.type == "notice"]
    assert len(told) == 1
    assert "not tuned" in told[0]
    assert "`recovery tune`" in told[0]

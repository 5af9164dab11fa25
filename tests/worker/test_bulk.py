"""Bulk sampling as a job: the same samples as everywhere, resumed shard by shard."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from model.chains.sampling import sample
from model.checkpoints.checkpoint import SAMPLING_FILES, load_model
from tests.servers import wait_until
from tests.stored import store_untrained
from tests.worker.conftest import Attempt, tiny_config
from worker.ids import new_id
from worker.jobs.kinds import JobKind
from worker.jobs.record import JobRecord, JobStatus
from worker.jobs.records import RecordStore
from worker.storage.artifacts import ArtifactMissing, Artifacts
from worker.storage.shards import get_manifest, get_shard, list_shards

pytestmark = pytest.mark.usefixtures("for_subprocesses")


def _bulk(store: RecordStore, model_id: str, **changes: object) -> JobRecord:
    spec = {"step": 20, "num_images": 250, "shard_images": 100, "seed": 7, "num_steps": None, "noise_scale": None}
    return store.create(JobKind.sample, {**spec, "device": "cpu", **changes}, model_id=model_id)


def _shard(s3: Artifacts, job_id: str, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = np.load(io.BytesIO(get_shard(s3, job_id, index)))
    return array


def test_shards_hold_the_stream_of_the_seed_in_order(store: RecordStore, s3: Artifacts, tmp_path: Path) -> None:
    model_id = store_untrained(s3, tiny_config())
    record = _bulk(store, model_id)
    ended = Attempt(store).end()
    assert ended is not None
    assert (ended.status, ended.error) == (JobStatus.succeeded, None)
    assert (ended.progress.step, ended.progress.total_steps, ended.progress.percent) == (250, 250, 100)
    manifest = get_manifest(s3, record.id)
    assert [shard.num_images for shard in manifest.shards] == [100, 100, 50]
    assert (manifest.model, manifest.seed, manifest.event_shape) == (f"{model_id}@20", 7, (2,))
    s3.fetch_checkpoint(model_id, 20, tmp_path / "model", names=SAMPLING_FILES)
    whole = sample(load_model(tmp_path / "model"), 250, seed=7)
    drawn = np.concatenate([_shard(s3, record.id, index) for index in range(3)])
    np.testing.assert_allclose(drawn, whole.x.numpy(), atol=1e-4)
    assert manifest.gradient_evaluations == whole.gradient_evaluations
    kinds = [event.type for event in store.read_events(record.id)]
    assert kinds.count("shard") == 3
    assert "sampling" in kinds


def test_a_cancelled_bulk_sampling_goes_on_with_the_shards_that_are_missing(store: RecordStore, s3: Artifacts) -> None:
    model_id = store_untrained(s3, tiny_config())
    record = _bulk(store, model_id, num_images=100_000, shard_images=50)
    attempt = Attempt(store)
    wait_until(lambda: len(list_shards(s3, record.id)) >= 2, "two shards", timeout_s=120)
    store.request_cancel(record.id)
    ended = attempt.end()
    assert ended is not None
    assert ended.status is JobStatus.cancelled
    with pytest.raises(ArtifactMissing):
        get_manifest(s3, record.id)
    done = list_shards(s3, record.id)
    first = get_shard(s3, record.id, 0)
    count = 50 * (max(done) + 3)
    store.resume(record.id, spec={**record.spec, "num_images": count})
    again = Attempt(store).end()
    assert again is not None
    assert again.status is JobStatus.succeeded
    assert get_shard(s3, record.id, 0) == first
    drawn = [e.data["index"] for e in store.read_events(record.id, limit=10_000) if e.type == "shard"]
    assert sorted(drawn) == list(range(max(done) + 3))


def test_a_checkpoint_that_is_gone_is_a_failure_that_says_so(store: RecordStore) -> None:
    _bulk(store, new_id())
    ended = Attempt(store).end()
    assert ended is not None
    assert ended.status is JobStatus.failed
    assert "models/" in (ended.error or "")

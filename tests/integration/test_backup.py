"""A backup is a copy of the bucket: brought back beside an empty Redis, it is everything that was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.client import Recovery
from tests.servers import wait_until
from tests.stack import TINY, UpCommand
from worker.connect import redis_client
from worker.storage.artifacts import Artifacts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def back_up(command: UpCommand, folder: Path) -> int:
    """Copy every object into files, as `aws s3 sync` does; returns how many."""
    bucket = Artifacts.connect(command.settings())
    keys = [key for key, _, _ in bucket.list_keys("")]
    for key in keys:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        bucket.download_file(key, path)
    return len(keys)


def restore(command: UpCommand, folder: Path) -> None:
    """The other way; then an empty Redis, which the workers fill from the bucket."""
    bucket = Artifacts.connect(command.settings())
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.upload_file(path, str(path.relative_to(folder)))
    redis = redis_client(command.settings())
    redis.flushall()
    redis.close()


def test_jobs_models_samples_and_a_training_under_way_come_back_elsewhere(
    recovery: Recovery, command: UpCommand, tmp_path: Path
) -> None:
    done = recovery.train(preset="digits", config=TINY, steps=20, seed=3, name="done")
    events = [event["id"] for event in recovery.events(done["id"])]
    assert recovery.job(done["id"])["status"] == "succeeded"
    under_way = recovery.train(preset="digits", config=TINY, steps=10**6, seed=4, checkpoint_every=20)
    wait_until(lambda: (recovery.job(under_way["id"])["last_checkpoint"] or 0) >= 20, "a checkpoint to go on from")
    model_id = done["model_id"]
    before = recovery.sample(model_id, 3, seed=7).x
    assert back_up(command, tmp_path / "backup") > 10
    recovery.cancel(under_way["id"])
    manifests = (tmp_path / "backup").glob(f"models/{under_way['model_id']}/checkpoints/*/manifest.json")
    saved = max(int(path.parent.name) for path in manifests)

    elsewhere = UpCommand(tmp_path / "elsewhere")
    try:
        with elsewhere.wait_until_ready() as client:
            assert client.jobs() == []
            restore(elsewhere, tmp_path / "backup")
            wait_until(lambda: len(client.jobs()) >= 2, "the jobs", every_s=0.5)
            assert client.job(done["id"])["status"] == "succeeded"
            assert client.job(done["id"])["name"] == "done"
            assert [event["id"] for event in client.events(done["id"])] == events
            np.testing.assert_array_equal(client.sample(model_id, 3, seed=7).x, before)
            wait_until(
                lambda: (client.job(under_way["id"])["last_checkpoint"] or 0) > saved,
                "its going on",
                timeout_s=120,
                every_s=0.5,
            )
            client.cancel(under_way["id"])
            steps = [event["data"]["step"] for event in client.events(under_way["id"]) if event["type"] == "started"]
            assert steps[0] == 0
            assert steps[-1] >= 20
    finally:
        assert elsewhere.end() == 0, elsewhere.output

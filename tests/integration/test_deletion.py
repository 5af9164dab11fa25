"""A training and its deletion leave storage as it was, whatever is killed in between."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import httpx2
import pytest

from model.config import to_dict
from tests.servers import wait_until
from tests.service.serving import Serving
from tests.worker.conftest import TRAINER, StartWorker, tiny_config
from tests.worker.conftest import start_worker as start_worker
from worker.jobs.record import JobRecord, JobStatus
from worker.jobs.records import RecordStore
from worker.observe.presence import live_workers
from worker.storage.artifacts import Artifacts, job_prefix, model_prefix

pytestmark = pytest.mark.stack

_OF_LIVING_PROCESSES = (b"worker:", b"_kombu", b"unacked", b"reaper:lock", b"samplers", b"rate:")
_PADDING = 1500
"""Objects, so that a deletion takes long enough to be killed in."""


def stored(store: RecordStore) -> tuple[list[tuple[str, int]], dict[bytes, bytes | None]]:
    """All there is in S3 and in Redis, but for what processes say that live, and for the count of all that happened."""
    objects = [(key, size_bytes) for key, size_bytes, _ in store.artifacts.list_keys("")]
    keys = [key for key in store.redis.scan_iter() if not key.startswith(_OF_LIVING_PROCESSES)]
    return objects, {key: store.redis.dump(key) for key in keys if key != b"jobs:tally"}


def train(url: str, store: RecordStore) -> JobRecord:
    """A training of a second, asked for as a client does, at its end."""
    body = {"config": to_dict(tiny_config()), "device": "cpu"}
    answer = httpx2.post(f"{url}/jobs/train", json=body, trust_env=False)
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    wait_until(lambda: store.get(job_id).status.is_terminal, "the end of the training")
    wait_until(lambda: not store.unsaved_ids(), "the copy in S3")
    record = store.get(job_id)
    assert record.status is JobStatus.succeeded
    return record


def count(s3: Artifacts, folder: str) -> int:
    return sum(1 for _ in s3.list_keys(folder))


def pad(s3: Artifacts, folder: str) -> int:
    """Add files as a training leaves many; how many objects there are then."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda index: s3.put_bytes(f"{folder}padding/{index}", b"x"), range(_PADDING)))
    return count(s3, folder)


def begin_to_delete(url: str, path: str) -> None:
    """Ask, and do not expect an answer: the service is about to be killed."""

    def ask() -> None:
        with contextlib.suppress(httpx2.TransportError):
            httpx2.delete(f"{url}{path}", timeout=60, trust_env=False)

    threading.Thread(target=ask, daemon=True).start()


def test_storage_after_train_and_delete_is_what_it_was_before(
    store: RecordStore, s3: Artifacts, start_worker: StartWorker, environment: dict[str, str], tmp_path: Path
) -> None:
    start_worker("trainer", TRAINER)
    with Serving(environment, tmp_path / "api.log") as api:
        train(api.url, store)
        before = stored(store)
        record = train(api.url, store)
        answers = [
            httpx2.delete(f"{api.url}{path}", trust_env=False).status_code
            for path in (f"/models/{record.model_id}", f"/jobs/{record.id}") * 2
        ]
        assert answers == [204, 204, 404, 404]
    wait_until(lambda: not s3.list_tombstones(), "the last sweep")
    wait_until(lambda: stored(store) == before, "the same storage as before")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["model", "job"])
def test_a_deletion_is_finished_though_the_service_and_the_reaper_are_killed_in_it(
    store: RecordStore,
    s3: Artifacts,
    start_worker: StartWorker,
    environment: dict[str, str],
    tmp_path: Path,
    what: str,
) -> None:
    def has_begun() -> bool:
        """Looks for a few objects only: a list of all of them takes as long as a part of the deletion."""
        return not all(s3.exists(f"{folder}padding/{index}") for index in range(0, _PADDING, _PADDING // 10))

    trainer = start_worker("first", TRAINER)
    with Serving(environment, tmp_path / "api.log") as api:
        train(api.url, store)
        before = stored(store)
        record = train(api.url, store)
        assert record.model_id is not None
        folder = model_prefix(record.model_id) if what == "model" else job_prefix(record.id)
        path = f"/{folder.rstrip('/')}"
        total = pad(s3, folder)
        trainer.kill_main()
        wait_until(lambda: not live_workers(store.redis), "the end of its signs of life")

        begin_to_delete(api.url, path)
        wait_until(has_begun, "the beginning of the deletion", every_s=0)
        api.process.kill()
        api.process.wait()
    assert 0 < count(s3, folder) < total

    left = pad(s3, folder)  # enough again for the reaper to be met in the middle of it
    reaper = start_worker("second", TRAINER)
    wait_until(has_begun, "the reaper's part", every_s=0)
    reaper.kill_main()
    assert 0 < count(s3, folder) < left
    wait_until(lambda: not live_workers(store.redis), "the end of its signs of life")

    start_worker("third", TRAINER)
    wait_until(lambda: count(s3, folder) == 0, "the end of the deletion")
    with Serving(environment, tmp_path / "api.log") as api:
        other = f"/jobs/{record.id}" if what == "model" else f"/models/{record.model_id}"
        assert httpx2.get(f"{api.url}{path}", trust_env=False).status_code == 404
        assert httpx2.delete(f"{api.url}{other}", trust_env=False).status_code == 204
    wait_until(lambda: not s3.list_tombstones(), "the last sweep")
    wait_until(lambda: stored(store) == before, "the same storage as before")

"""Generated requests against the real service: nothing fails, nothing answers what the document does not say."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.servers import wait_until
from tests.service.fuzzing import fuzz
from tests.service.serving import Serving, with_key
from tests.worker.conftest import SAMPLER, TRAINER, WorkerProcess, calibration_spec, tiny_spec
from worker.jobs.kinds import JobKind
from worker.jobs.record import JobNotFound, JobRecord, JobStatus, StaleLease
from worker.jobs.records import RecordStore
from worker.queue.broker import make_app, wake

EXAMPLES = int(os.environ.get("RECOVERY_FUZZ_EXAMPLES", "2"))
"""Of every operation in the phases that draw at random; `make fuzz` asks for more."""


def _finished(store: RecordStore, record: JobRecord) -> JobRecord:
    with make_app(store.settings) as app:
        wake(app, record.kind, record.id)
    wait_until(lambda: store.get(record.id).status.is_terminal, f"the end of {record.id}")
    found = store.get(record.id)
    assert found.status is JobStatus.succeeded, found.error
    return found


@pytest.fixture
def trained(store: RecordStore, environment: dict[str, str], tmp_path: Path) -> JobRecord:
    """A finished training, whose model is calibrated."""
    worker = WorkerProcess("trainer", TRAINER, environment | {"OMP_NUM_THREADS": "1"}, tmp_path / "trainer.log")
    try:
        record = _finished(store, store.create(JobKind.train, tiny_spec()))
        calibration = calibration_spec(60, num_chains=16)
        _finished(store, store.create(JobKind.calibrate, calibration, model_id=record.model_id))
    finally:
        worker.stop()
    return record


@pytest.fixture
def sampler(environment: dict[str, str], tmp_path: Path) -> Iterator[None]:
    """A real sampler."""
    worker = WorkerProcess("sampler", SAMPLER, environment | {"OMP_NUM_THREADS": "1"}, tmp_path / "sampler.log")
    try:
        yield
    finally:
        worker.stop()


@pytest.fixture
def hasty_trainer(store: RecordStore, trained: JobRecord) -> Iterator[None]:  # noqa: ARG001 (it goes first)
    """Ends every job as soon as it waits: what is asked for here is not meant to be trained for days."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.02):
            for job_id in store.waiting_ids("train"):
                with contextlib.suppress(StaleLease, JobNotFound):
                    if lease := store.acquire_lease(job_id, "hasty"):
                        store.fail(lease, "nobody meant it")

    store.redis.set("worker:train:hasty", "", ex=3600)
    thread = threading.Thread(target=work)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.mark.usefixtures("sampler", "hasty_trainer")
@pytest.mark.timeout(3600)
def test_generated_requests_meet_only_answers_that_are_documented(
    trained: JobRecord, environment: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guarded, key = with_key(environment, tmp_path / "keys.json")
    guarded |= {
        "RECOVERY_RATE_LIMIT_PER_S": "100000",
        "RECOVERY_MAX_JOBS_PER_KEY": "1000000",
        "RECOVERY_MAX_CHAIN_STEPS": "20000",
        "RECOVERY_MAX_PIXELS": "1000000",
    }
    with Serving(guarded, tmp_path / "serve.log") as serving:
        ready = lambda: httpx2.get(f"{serving.url}/readyz", trust_env=False).status_code == 200  # noqa: E731
        wait_until(ready, "readiness")
        ids = {
            "path.job_id": [trained.id],
            "path.model_id": [str(trained.model_id)],
            "body.model": [str(trained.model_id)],
        }
        found = fuzz(serving.url, key, tmp_path, ids=ids, examples=EXAMPLES, seed=0)
    with capsys.disabled():
        sys.stdout.write(f"\n{found.num_requests} requests tried, answered {dict(sorted(found.by_status.items()))}\n")
    assert not found.failed, found.output

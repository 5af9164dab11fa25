"""One training by two processes under a real torchrun, ended in every way."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.servers import PATIENCE_S, wait_until
from tests.worker.conftest import TRAINER, Attempt, StartWorker, tiny_spec
from tests.worker.whole_trainings import averaged, end, none_left, reach
from worker.jobs.kinds import JobKind
from worker.jobs.record import JobRecord, JobStatus
from worker.jobs.records import RecordStore
from worker.queue.broker import make_app, wake
from worker.storage.artifacts import Artifacts
from worker.trainer.exits import Exit
from worker.trainer.torchrun import Death, ending

LONG = {"steps": 1_000_000, "checkpoint_every": 50}


def _training(store: RecordStore, num_gpus: int = 2, **changes: Any) -> JobRecord:
    return store.create(JobKind.train, tiny_spec(**changes) | {"num_gpus": num_gpus})


def _ranks(record: JobRecord) -> list[psutil.Process]:
    """The ranks of a job that run, the leading one first."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "worker.trainer.attempt" in command and record.id in command and "worker.trainer.torchrun" not in command:
            found[int(process.environ()["RANK"])] = process
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_rank_ends_in_a_resumed_job_with_the_weights_of_one_undisturbed_process(
    store: RecordStore, s3: Artifacts, start_worker: StartWorker, tmp_path: Path
) -> None:
    steps = {"steps": 600, "checkpoint_every": 100, "log_every": 50}
    start_worker("only", TRAINER)
    record = _training(store, **steps)
    with make_app(store.settings) as app:
        wake(app, record.kind, record.id)
        reach(store, record, 100)
        _, second = _ranks(record)
        second.kill()
        ended = end(store, record)
        assert (ended.status, ended.attempt, ended.error) == (JobStatus.succeeded, 2, None)
        events = store.read_events(record.id, limit=10_000)
        told = [event.data for event in events if event.type == "status"]
        assert any("killed by SIGKILL" in str(data) and "rank 1 of 2" in str(data) for data in told), told
        started = [event.data for event in events if event.type == "started"]
        assert [data["num_gpus"] for data in started] == [2, 2]
        assert started[1]["step"] >= 100
        alone = _training(store, 1, **steps)
        wake(app, alone.kind, alone.id)
        assert end(store, alone).status is JobStatus.succeeded
    wait_until(lambda: none_left(record), "the end of all its processes")
    one, other = (averaged(s3, job, 600, tmp_path / job.id) for job in (record, alone))
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("for_subprocesses")
def test_two_ranks_are_interrupted_killed_with_their_torchrun_and_cancelled(store: RecordStore) -> None:
    record = _training(store, **LONG)
    interrupted = Attempt(store)
    reach(store, record, 50)
    interrupted.stop.set()
    queued = interrupted.end()
    assert queued is not None
    assert (queued.status, queued.attempt) == (JobStatus.queued, 1)
    assert queued.last_checkpoint is not None
    assert queued.last_checkpoint >= queued.progress.step > 0
    assert none_left(record)

    killed = Attempt(store)
    reach(store, record, queued.last_checkpoint + 50)
    ranks = _ranks(record)
    ranks[0].parent().kill()  # type: ignore[union-attr]
    assert psutil.wait_procs(ranks, timeout=PATIENCE_S)[1] == []
    lost = killed.end()
    assert lost is not None
    assert (lost.status, lost.attempt) == (JobStatus.queued, 2)

    cancelled = Attempt(store)
    reach(store, record, (store.get(record.id).last_checkpoint or 0) + 50)
    assert len(_ranks(record)) == 2
    store.request_cancel(record.id)
    ended = cancelled.end()
    assert ended is not None
    assert (ended.status, ended.error) == (JobStatus.cancelled, None)
    assert ended.last_checkpoint is not None
    assert ended.last_checkpoint >= ended.progress.step
    assert none_left(record)
    steps = [e.data["step"] for e in store.read_events(record.id, limit=100_000) if e.type == "started"]
    assert steps[0] == 0
    assert steps[1] == queued.last_checkpoint
    assert steps[2] > steps[1]


@pytest.mark.usefixtures("for_subprocesses")
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_more_gpus_than_there_are_fail_with_the_number_there_is(store: RecordStore, device: str) -> None:
    store.create(JobKind.train, tiny_spec() | {"num_gpus": 64, "device": device})
    ended = Attempt(store).end()
    assert ended is not None
    assert ended.status is JobStatus.failed
    count, what = (
        (len(os.sched_getaffinity(0)), "CPU core") if device == "cpu" else (torch.cuda.device_count(), "usable GPU")
    )
    words = f"has {count} {what}{'s' * (count > 1)}; ask for at most {count}"
    if count == 0:
        words = "has no usable GPU; ask for 1, or for device 'cpu'"
    assert f"num_gpus is 64, but this worker {words}" in (ended.error or "")


_GONE = (Exit.try_again, "another process of this training is gone")


@pytest.mark.parametrize(
    ("outcomes", "deaths", "code", "words"),
    [
        ([(Exit.succeeded, None)] * 2, {}, Exit.succeeded, None),
        ([(Exit.cancelled, None), (Exit.succeeded, None)], {}, Exit.cancelled, None),
        ([_GONE, (None, None)], {0: Death(23, 7), 1: Death(-9, 7)}, Exit.try_again, "SIGKILL.*rank 1 of 2"),
        ([_GONE, (None, None)], {0: Death(-15, 7), 1: Death(-9, 7)}, Exit.try_again, "SIGKILL.*rank 1 of 2"),
        ([_GONE, (None, None)], {0: Death(-6, 7), 1: Death(-9, 7)}, Exit.try_again, "SIGKILL.*rank 1 of 2"),
        ([(None, None)] * 2, {0: Death(-15, 7), 1: Death(-9, 7)}, Exit.try_again, "SIGKILL.*rank 1 of 2"),
        ([(Exit.failed, "bad data"), (None, None)], {0: Death(22, 7), 1: Death(-9, 7)}, Exit.failed, "bad data"),
        ([_GONE, (Exit.failed, "no memory")], {0: Death(23, 7), 1: Death(22, 7)}, Exit.failed, "no memory"),
        ([(Exit.try_again, "S3 away"), (None, None)], {0: Death(23, 7), 1: Death(-9, 37)}, Exit.try_again, "S3 away"),
        ([(Exit.stale, None), _GONE], {0: Death(24, 7), 1: Death(23, 7)}, Exit.stale, None),
        ([(None, None), _GONE], {0: Death(1, 7), 1: Death(23, 7)}, 1, None),
        ([(None, None)] * 2, {0: Death(1, 7), 1: Death(1, 7)}, 1, None),
        ([(None, None)] * 2, {}, Exit.interrupted, None),
    ],
)
def test_what_a_rank_says_of_itself_comes_before_what_others_say_of_it(
    outcomes: list[tuple[Exit | None, str | None]], deaths: dict[int, Death], code: int, words: str | None
) -> None:
    found, reason = ending(outcomes, deaths)
    assert found == code
    assert (reason is None) == (words is None)
    assert re.search(words or "", reason or "")

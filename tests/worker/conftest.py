"""What the workers' tests share: a training of seconds, jobs in every state, and real worker processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from model.config import (
    CalibrationConfig,
    ChainConfig,
    NetworkConfig,
    ScheduleConfig,
    ScoreMatchingConfig,
    TrainConfig,
    to_dict,
)
from model.presets import preset
from tests.servers import PATIENCE_S, tethered, wait_until
from worker.jobs.kinds import JobKind
from worker.jobs.record import JobRecord, JobStatus, Lease
from worker.jobs.records import RecordStore
from worker.observe.presence import live_workers
from worker.trainer.supervise import Supervisor

ROOT = Path(__file__).resolve().parents[2]


def tiny_config(**changes: Any) -> TrainConfig:
    """A few hundred steps a second on one core."""
    tiny = replace(
        preset("density-2d"),
        energy="gaussian",
        calibrate=False,
        tune=False,
        network=NetworkConfig(kind="mlp", width=8, num_blocks=1, spectral_norm=False),
        schedule=ScheduleConfig(kind="log_snr", num_levels=3),
        chain=ChainConfig(num_steps=1, step_size=0.1),
        score_matching=ScoreMatchingConfig(steps=0),
        steps=60,
        batch_size=16,
        log_every=10,
        sample_every=1_000_000,
        checkpoint_every=20,
        num_preview_samples=8,
    )
    return replace(tiny, **changes)


def tiny_spec(**changes: Any) -> dict[str, Any]:
    """The job's spec for `tiny_config`."""
    return {"config": to_dict(tiny_config(**changes)), "device": "cpu"}


def calibration_spec(step: int = 20, **changes: Any) -> dict[str, Any]:
    """The spec of a calibration of a second."""
    config = CalibrationConfig(**{"num_chains": 64, "max_bridges": 1, "max_chains": 64, **changes})
    return {"config": to_dict(config), "step": step, "device": "cpu"}


def make_job(store: RecordStore, status: JobStatus) -> tuple[JobRecord, Lease | None]:
    """A job brought into a state by legal means, and its latest lease."""
    record = store.create(JobKind.train, {"config": {}})
    if status is JobStatus.queued:
        return record, None
    lease = store.acquire_lease(record.id, "first@worker")
    assert lease is not None
    match status:
        case JobStatus.succeeded:
            store.succeed(lease)
        case JobStatus.failed:
            store.fail(lease, "it went wrong")
        case JobStatus.cancelled:
            store.cancel(lease)
    return store.get(record.id), lease


@pytest.fixture(autouse=True)
def one_thread_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several trainings share two cores here; torch's threads would wait for each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


class WorkerProcess:
    """A real Celery worker."""

    def __init__(self, name: str, options: str, environment: dict[str, str], log: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "worker.app",
            "worker",
            "--without-mingle",
            "-n",
            f"{name}@test",
        ]
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                tethered([*command, *options.split()]),
                env=os.environ | environment | {"C_FORCE_ROOT": "1"},
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    def family(self) -> list[psutil.Process]:
        """The worker, its pool and its trainings."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def kill_main(self) -> None:
        """kill -9 of the main process alone."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


StartWorker = Callable[[str, str], WorkerProcess]


@pytest.fixture
def start_worker(store: RecordStore, environment: dict[str, str], tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers, by name and options, and waits until they are ready; none is left afterwards."""
    started: list[WorkerProcess] = []

    def start(name: str, options: str) -> WorkerProcess:
        alive = sum(live_workers(store.redis).values())
        worker = WorkerProcess(name, options, environment, tmp_path / f"{name}.log")
        started.append(worker)
        wait_until(lambda: sum(live_workers(store.redis).values()) > alive, f"readiness of {name}")
        return worker

    yield start
    for worker in started:
        if worker.process.poll() is None:
            family = worker.family()
            worker.kill_main()
            for process in family[1:]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


TRAINER = "-Q train -c 1"
SAMPLER = "-Q sample --pool threads -c 2"


@pytest.fixture
def for_subprocesses(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Supervisors in this process start their subprocesses with the test's settings."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


class Attempt:
    """One attempt at the job that is next, in a thread."""

    def __init__(self, store: RecordStore, worker: str = "w@test") -> None:
        self.woken: list[tuple[str, str]] = []
        self.stop = threading.Event()
        self.record: JobRecord | None = None
        self._supervisor = Supervisor(
            store,
            store.settings,
            worker=worker,
            wake_fn=lambda *job: self.woken.append(job),
            stop_fn=self.stop.is_set,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)  # a failed test must not keep pytest from ending
        self._thread.start()

    def _run(self) -> None:
        self.record = self._supervisor.run()

    def end(self, timeout_s: float = PATIENCE_S) -> JobRecord | None:
        """What `Supervisor.run` answered."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()
        return self.record

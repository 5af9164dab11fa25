"""The training subprocess: `python -m worker.train JOB_ID TOKEN WORKER PARENT_PID DIRECTORY`.

It alone imports torch and touches the GPU, so that its memory is freed whatever happens. It acts in the name of the
lease it was started with: its events, progress and checkpoints are refused once the job is somebody else's.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog
from redis.exceptions import RedisError

from model.config import TrainConfig, from_dict
from model.errors import CheckpointError, ModelError
from model.events import CheckpointEvent, DoneEvent, SampleEvent, StepEvent, TrainEvent
from worker.artifacts import ArtifactDamaged, StorageUnavailable, model_prefix
from worker.datasets import resolve_dataset
from worker.exits import Exit, write_reason
from worker.jobs import JobRecord, Lease, Progress, StaleLease
from worker.logs import configure_logging
from worker.records import RecordStore
from worker.settings import Settings
from worker.spool import Spool, UndeliveredError, deliver_leftovers
from worker.telemetry import Telemetry
from worker.watch import StopReason, Watch

if TYPE_CHECKING:
    from model.checkpoint import Snapshot

T = TypeVar("T")

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_TELEMETRY_PATIENCE_S = 10.0
_ENDINGS = {
    None: Exit.succeeded,
    StopReason.cancelled: Exit.cancelled,
    StopReason.interrupted: Exit.interrupted,
    StopReason.stale: Exit.stale,
}


def main(arguments: list[str]) -> int:
    """Run one attempt of a job; returns an `Exit`."""
    job_id, token, worker, parent_pid, directory = arguments
    settings = Settings()
    _die_with_parent(int(parent_pid))
    faulthandler.enable()  # a crash in native code leaves its stack in the log
    configure_logging()
    structlog.contextvars.bind_contextvars(job_id=job_id, lease=token)
    store = RecordStore.connect(settings)
    run = TrainingRun(store, Lease(job_id=job_id, token=int(token), worker=worker), Path(directory))
    signal.signal(signal.SIGTERM, lambda *_: run.interrupt())
    return run.run()


def _die_with_parent(parent_pid: int) -> None:
    """Have the kernel send SIGTERM when the supervisor dies, however it dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        raise SystemExit("the supervisor died before the training started")


class TrainingRun:
    """One attempt: resumes from the newest committed checkpoint and delivers what the training yields."""

    def __init__(self, store: RecordStore, lease: Lease, directory: Path) -> None:
        self._store = store
        self._artifacts = store.artifacts
        self._settings = store.settings
        self._lease = lease
        self._directory = directory
        self._watch = Watch(store, lease)
        self._telemetry = Telemetry(store, lease)

    def interrupt(self) -> None:
        """Checkpoint and end; and end without a checkpoint if that hangs, even with nobody left to send SIGKILL."""
        self._watch.interrupt()
        timer = threading.Timer(self._settings.kill_grace_s, os._exit, [Exit.interrupted])
        timer.daemon = True
        timer.start()

    def run(self) -> Exit:
        """Train; every ending is an exit code, with the reason in words where there is one."""
        self._watch.start()
        self._telemetry.start()
        try:
            return self._train()
        except (ModelError, UndeliveredError) as error:
            return self._ended(Exit.failed, str(error))
        except StaleLease:
            return Exit.stale
        except (StorageUnavailable, RedisError) as error:
            return self._ended(Exit.try_again, f"a store stayed away: {error}")
        except MemoryError as error:
            return self._ended(Exit.failed, f"out of memory: {error}; lower batch_size or the network's width")
        except Exception as error:
            traceback.print_exc()
            return self._ended(Exit.failed, _unexpected(error))
        finally:
            self._telemetry.close(_TELEMETRY_PATIENCE_S)
            self._watch.close()

    def _ended(self, code: Exit, reason: str) -> Exit:
        log.error("training_ended", outcome=code.name, reason=reason)
        write_reason(self._directory, reason)
        return code

    def _train(self) -> Exit:
        record = self._patiently(lambda: self._store.get(self._lease.job_id))
        config = from_dict(TrainConfig, record.spec["config"])
        dataset_location = resolve_dataset(config.dataset, self._settings.datasets_dir)
        import torch  # takes seconds; signals and threads are in place by now

        from model import data, training
        from model.networks import useful_threads

        device = _device(str(record.spec.get("device", "auto")))
        dataset = data.load(dataset_location)
        batch_size = max(config.batch_size, config.score_matching.batch_size)
        torch.set_num_threads(
            min(torch.get_num_threads(), useful_threads(config.network, dataset.event_shape, batch_size))
        )
        model_id = record.model_id or record.id
        self._patiently(lambda: self._describe_model(model_id, record))
        snapshot = self._patiently(lambda: self._newest_snapshot(model_id))
        spool = self._start_spool(model_id)
        start_step = snapshot.step if snapshot else 0
        self._telemetry.event("started", {"step": start_step, "attempt": record.attempt, "device": device})
        log.info("training_started", step=start_step, total_steps=config.steps, device=device)
        events = training.train(config, dataset, snapshot=snapshot, device=device, stop_fn=self._watch.should_stop)
        for event in events:
            self._deliver(event, spool)
        spool.flush(self._delivery_patience_s)
        return _ENDINGS[self._stop_reason]

    def _deliver(self, event: TrainEvent, spool: Spool) -> None:
        match event:
            case StepEvent():
                self._telemetry.event("step", asdict(event))
                self._telemetry.progress(_progress(event), event.loss)
            case SampleEvent():
                spool.add_grid(event.step, event.samples)
            case CheckpointEvent():
                spool.add_checkpoint(event.step, event.write)
            case DoneEvent():
                # Asked to stop after the last step was done: there is nothing left to stop.
                self._stop_reason = self._watch.reason if event.stopped else None
                log.info("training_done", step=event.step, stopped=event.stopped)

    _stop_reason: StopReason | None = None

    def _start_spool(self, model_id: str) -> Spool:
        spool = Spool(
            self._artifacts,
            job_id=self._lease.job_id,
            model_id=model_id,
            directory=self._directory,
            on_checkpoint=self._telemetry.checkpoint,
            on_grid=lambda step, key: self._telemetry.event("sample", {"step": step, "key": key}),
            is_owner_fn=lambda: self._watch.is_owner,
        )
        spool.start()
        return spool

    @property
    def _delivery_patience_s(self) -> float:
        """Interrupted, what is left waits in the spool for the next attempt; otherwise the job ends with it."""
        if self._watch.reason is StopReason.interrupted:
            return self._settings.kill_grace_s / 3
        return self._settings.storage_patience_s

    def _describe_model(self, model_id: str, record: JobRecord) -> None:
        if self._artifacts.exists(f"{model_prefix(model_id)}model.json"):
            return
        config = record.spec["config"]
        self._artifacts.put_model(
            model_id,
            {
                "id": model_id,
                "name": record.name,
                "dataset": config.get("dataset"),
                "config": config,
                "job_id": record.id,
                "created_at": datetime.now(UTC).isoformat(),
            },
        )

    def _newest_snapshot(self, model_id: str) -> Snapshot | None:
        """The newest checkpoint that can be read; what an earlier attempt left in the spool counts."""
        from model.checkpoint import read_snapshot

        deliver_leftovers(self._artifacts, model_id, self._directory.parent)
        for checkpoint in reversed(self._artifacts.list_checkpoints(model_id)):
            directory = self._directory / "resume"
            try:
                self._artifacts.fetch_checkpoint(model_id, checkpoint.step, directory)
                return read_snapshot(directory)
            except (ArtifactDamaged, CheckpointError) as error:
                self._telemetry.event("notice", {"text": f"checkpoint {checkpoint.step} is unusable: {error}"})
            finally:
                shutil.rmtree(directory, ignore_errors=True)
        return None

    def _patiently(self, call_fn: Callable[[], T]) -> T:
        """The answer of a store, asked again while it is away. Raises what it raised last."""
        give_up_at = time.monotonic() + self._settings.storage_patience_s
        while True:
            try:
                return call_fn()
            except (StorageUnavailable, RedisError) as error:
                if time.monotonic() > give_up_at or self._watch.reason is not None:
                    raise
                log.warning("store_away", error=str(error))
                time.sleep(1)


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device is {wanted!r}, but this worker has no usable GPU; use 'auto' or 'cpu'")
    return wanted


def _progress(event: StepEvent) -> Progress:
    remaining = event.total_steps - event.step
    return Progress(
        step=event.step,
        total_steps=event.total_steps,
        percent=round(100 * event.step / event.total_steps, 2),
        steps_per_second=event.steps_per_second,
        eta_seconds=remaining / event.steps_per_second if event.steps_per_second > 0 else None,
    )


def _unexpected(error: Exception) -> str:
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU is out of memory; lower batch_size or the network's width, or use a larger GPU"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"unexpected {type(error).__name__} at {where}: {str(error)[:500]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

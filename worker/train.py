"""The subprocess of a training, `python -m worker.train`; attempt.py is its frame."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from model.config import CalibrationConfig, TrainConfig, from_dict
from model.errors import CheckpointError
from model.events import CheckpointEvent, DoneEvent, RollbackEvent, SampleEvent, StepEvent, TrainEvent
from worker.artifacts import ArtifactDamaged, ArtifactError, ArtifactMissing, model_prefix
from worker.attempt import Attempt, device_of, main
from worker.calibrate import calibrate_checkpoint
from worker.datasets import fetch_dataset
from worker.jobs import JobRecord, Progress
from worker.spool import CommittedCheckpoint, Spool, deliver_leftovers
from worker.watch import StopReason

if TYPE_CHECKING:
    from model.checkpoint import Snapshot

log = structlog.get_logger(__name__)


class TrainingRun(Attempt):
    """One attempt: resumes from the newest committed checkpoint and delivers what the training yields."""

    _stop_reason: StopReason | None = None

    def work(self, record: JobRecord) -> StopReason | None:
        """Train, deliver, and calibrate the last checkpoint if the configuration says so."""
        config = from_dict(TrainConfig, record.spec["config"])
        location = self.patiently(lambda: fetch_dataset(config.dataset, self.settings, self.artifacts))
        from model import data, training  # torch takes seconds; signals and threads are in place by now

        device = device_of(record)
        dataset = data.load(location, self.settings.read_limits)
        batch_size = max(config.batch_size, config.score_matching.batch_size)
        self.use_threads(config.network, dataset.event_shape, batch_size)
        model_id = record.model_id or record.id
        self.patiently(lambda: self._describe_model(model_id, record))
        snapshot = self.patiently(lambda: self._newest_snapshot(model_id))
        spool = self._start_spool(model_id)
        start_step = snapshot.step if snapshot else 0
        self.telemetry.event("started", {"step": start_step, "attempt": record.attempt, "device": device})
        log.info("training_started", step=start_step, total_steps=config.steps, device=device)
        events = training.train(
            config,
            dataset,
            snapshot=snapshot,
            device=device,
            stop_fn=self.watch.should_stop,
            earlier_fn=lambda step: self.patiently(lambda: self._snapshot(model_id, step)),
        )
        for event in events:
            self._deliver(event, spool)
        spool.flush(self._delivery_patience_s)
        if self._stop_reason is None and config.calibrate:
            # from storage, where the checkpoint is committed by now: what is scored is what will be served
            options = CalibrationConfig(seed=config.seed)
            return calibrate_checkpoint(self, record, model_id, config.steps, options, report_progress=False)
        return self._stop_reason

    def _deliver(self, event: TrainEvent, spool: Spool) -> None:
        match event:
            case StepEvent():
                log.info("training_step", step=event.step, loss=event.loss)
                self.telemetry.event("step", asdict(event))
                self.telemetry.progress(_progress(event), event.loss)
            case SampleEvent():
                spool.add_grid(event.step, event.samples)
            case CheckpointEvent():
                spool.add_checkpoint(event.step, event.write)
            case RollbackEvent():
                log.warning("training_diverged", step=event.step, to_step=event.to_step, reason=event.reason)
                self.telemetry.event("rollback", asdict(event))
            case DoneEvent():
                # Asked to stop after the last step was done: there is nothing left to stop.
                self._stop_reason = self.watch.reason if event.stopped else None
                log.info("training_done", step=event.step, stopped=event.stopped)

    def _start_spool(self, model_id: str) -> Spool:
        spool = Spool(
            self.artifacts,
            lease=self.lease,
            model_id=model_id,
            directory=self.directory,
            on_checkpoint=self._committed,
            on_grid=lambda step, key: self.telemetry.event("sample", {"step": step, "key": key}),
            confirm_fn=self.watch.confirm,
        )
        spool.start()
        return spool

    def _committed(self, checkpoint: CommittedCheckpoint) -> None:
        """Tell of a checkpoint, and keep what was told so far where a wiped Redis does not reach."""
        log.info("checkpoint_committed", **asdict(checkpoint))
        self.telemetry.checkpoint(checkpoint.step, asdict(checkpoint))
        try:
            self.store.events.archive(self.lease.job_id)
        except (ArtifactError, RedisError) as error:
            log.warning("events_not_archived", error=type(error).__name__)

    @property
    def _delivery_patience_s(self) -> float:
        """Interrupted, what is left waits in the spool for the next attempt; otherwise the job ends with it."""
        if self.watch.reason is StopReason.interrupted:
            return self.settings.kill_grace_s / 3
        return self.settings.storage_patience_s

    def _describe_model(self, model_id: str, record: JobRecord) -> None:
        if self.artifacts.exists(f"{model_prefix(model_id)}model.json"):
            return
        config = record.spec["config"]
        self.artifacts.put_model(
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
        deliver_leftovers(self.artifacts, self.lease, model_id, self.directory.parent, self.watch.confirm)
        for checkpoint in reversed(self.artifacts.list_checkpoints(model_id)):
            if (snapshot := self._snapshot(model_id, checkpoint.step)) is not None:
                return snapshot
        return None

    def _snapshot(self, model_id: str, step: int) -> Snapshot | None:
        """A committed checkpoint, if there is one that can be read. Raises StorageUnavailable."""
        from model.checkpoint import read_snapshot

        directory = self.directory / "resume"
        try:
            self.artifacts.fetch_checkpoint(model_id, step, directory)
            return read_snapshot(directory)
        except (ArtifactMissing, ArtifactDamaged, CheckpointError) as error:
            self.telemetry.event("notice", {"text": f"checkpoint {step} is unusable: {error}"})
            return None
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _progress(event: StepEvent) -> Progress:
    remaining = event.total_steps - event.step
    return Progress(
        step=event.step,
        total_steps=event.total_steps,
        percent=round(100 * event.step / event.total_steps, 2),
        steps_per_second=event.steps_per_second,
        eta_seconds=remaining / event.steps_per_second if event.steps_per_second > 0 else None,
    )


if __name__ == "__main__":
    sys.exit(main(TrainingRun, sys.argv[1:]))

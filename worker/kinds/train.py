"""The work of a training; worker/trainer/attempt.py is its frame.

Of several ranks all train, and the leading one does what is seen from outside: it finds the data and the checkpoint,
tells of progress, stores checkpoints, tunes and calibrates.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import RedisError

from model.config import CalibrationConfig, TrainConfig, to_dict
from model.errors import CheckpointError, ModelError
from model.events import (
    BatchEvent,
    CheckpointEvent,
    DoneEvent,
    HealthEvent,
    RollbackEvent,
    SampleEvent,
    StepEvent,
    TrainEvent,
)
from model.frontier import TuneConfig
from model.planning import Machine, expectations, fit, overlaid, plan, timing_s
from worker.datasets.names import fetch_dataset, unread_column
from worker.jobs.deletion import Deletions, Retention
from worker.jobs.event import (
    CheckpointsDeletedEvent,
    CheckpointStoredEvent,
    GridEvent,
    NoticeEvent,
    PlanEvent,
    StartedEvent,
)
from worker.jobs.kinds import PlanRequest, TrainSpec
from worker.jobs.record import JobRecord, Progress, RecordError
from worker.kinds.calibrate import calibrate_checkpoint
from worker.kinds.tune import tune_checkpoint
from worker.storage.artifacts import ArtifactDamaged, ArtifactError, ArtifactMissing
from worker.trainer.attempt import Attempt, device_of
from worker.trainer.spool import Spool, deliver_leftovers
from worker.trainer.watch import StopReason

if TYPE_CHECKING:
    from model.checkpoints.checkpoint import Snapshot
    from model.data.datasets import Dataset
    from model.training.ranks import Ranks

log = structlog.get_logger(__name__)

_SLOW_BFLOAT16 = (
    "this processor has no AMX instructions; on such a one bfloat16 was measured no faster than float32: "
    "consider precision 'float32'"
)

_QUICK = {"max_bridges": 8, "max_chains": CalibrationConfig.num_chains}
"""The limits of a calibration at the end of a training: it takes a tenth of the time of `density-digits` and a third of
that of `density-2d`. A job of its own goes further."""


_SHORTEST_TUNING_S, _LONGEST_TUNING_S = 1.0, 600.0


class Run(Attempt):
    """One attempt at a training: it goes on from the newest committed checkpoint, and delivers what it yields."""

    _stop_reason: StopReason | None = None
    _checkpoint_every = 1

    def work(self, record: JobRecord) -> StopReason | None:
        """Train, deliver, and tune and calibrate the last checkpoint if the configuration says so."""
        spec = TrainSpec.of(record.spec)
        spool = self._start_spool(record.model_id or record.id, spec) if self.rank == 0 else None
        with self._ranks(record) as ranks:
            config = self._train(record, spec, ranks, spool)
        if spool is None:
            return None
        spool.flush(self._delivery_patience_s)
        # from storage, where the checkpoint is committed by now: what is measured is what will be served
        if self._stop_reason is None and config.tune:
            self._stop_reason = self._tune(record, config)
        if self._stop_reason is None and config.calibrate:
            options = CalibrationConfig(seed=config.seed, **_QUICK)
            model_id = record.model_id or record.id
            return calibrate_checkpoint(self, record, model_id, config.steps, options, report_progress=False)
        return self._stop_reason

    def _tune(self, record: JobRecord, config: TrainConfig) -> StopReason | None:
        """Tune the last checkpoint in a small share of the training's time, if that is enough for anything."""
        limit_s = min(self.settings.tuning_share * self._elapsed_s(record), _LONGEST_TUNING_S)
        if limit_s < _SHORTEST_TUNING_S:
            if limit_s > 0:
                text = f"not tuned: {limit_s:.1g} s of so short a training are too few; `recovery tune` takes its time"
                self.telemetry.event(NoticeEvent(text=text))
            return None
        options = TuneConfig(seed=config.seed, num_samples=500, max_steps=8, max_seconds=limit_s)
        try:
            return tune_checkpoint(
                self, record, record.model_id or record.id, config.steps, options, report_progress=False
            )
        except ModelError as error:  # the training has succeeded all the same
            self.telemetry.event(NoticeEvent(text=f"not tuned: {error}"))
            return None

    def _elapsed_s(self, record: JobRecord) -> float:
        """Seconds since the first attempt at the job began, or this one, where its event is forgotten."""
        started = (event.at for event in self.store.read_events(record.id) if event.type == "started")
        return (datetime.now(UTC) - next(started, record.started_at or datetime.now(UTC))).total_seconds()

    def _train(self, record: JobRecord, spec: TrainSpec, ranks: Ranks, spool: Spool | None) -> TrainConfig:
        begun, config = time.monotonic(), spec.config
        from model import data, training  # torch takes seconds; signals and threads are in place by now
        from model.networks.winograd import bfloat16_is_slow
        from model.training.state import class_names

        name, image_size, column = config.dataset, config.image_size, config.label_column
        with ranks.leader_first():  # the others of its machine find it in the cache
            location = self.patiently(lambda: fetch_dataset(name, self.settings, self.artifacts, image_size, column))
        device, limits, column = self._device(record), self.settings.read_limits, unread_column(name, column)
        dataset = data.load(location, limits, image_size, column, max_deviation=config.max_deviation)
        if spec.plan is not None:
            config = self._planned(record, spec.plan, name, dataset, device, ranks, begun)
        self.use_threads(config.network, dataset.event_shape, config.largest_batch_size)
        self._checkpoint_every = config.checkpoint_every
        model_id = record.model_id or record.id
        if spool is not None:
            about = {"classes": class_names(config, dataset), "event_shape": dataset.event_shape}
            self.patiently(lambda: self._describe_model(model_id, record, config, about))
        snapshot = self._found_together(ranks, model_id, lambda: self._newest_snapshot(model_id))
        start_step = snapshot.step if snapshot else 0
        if spool is not None:
            self.telemetry.event(
                StartedEvent(step=start_step, attempt=record.attempt, device=device, num_gpus=ranks.count)
            )
            if device == "cpu" and config.precision == "bfloat16" and bfloat16_is_slow():
                self.telemetry.event(NoticeEvent(text=_SLOW_BFLOAT16))
        log.info("training_started", step=start_step, total_steps=config.steps, device=device)
        events = training.train(
            config,
            dataset,
            snapshot=snapshot,
            device=device,
            ranks=ranks,
            stop_fn=self.watch.should_stop if self.rank == 0 else lambda: False,  # they follow the leading rank
            earlier_fn=lambda step: self._found_together(ranks, model_id, lambda: self._snapshot(model_id, step)),
        )
        for event in events:
            if spool is not None:
                self._deliver(event, spool)
        return config

    def _planned(
        self, record: JobRecord, wish: PlanRequest, name: str, dataset: Dataset, device: str, ranks: Ranks, begun: float
    ) -> TrainConfig:
        """Decide by the data, the machine and the time since `begun` how to train, for this and every later attempt."""
        import torch

        from model.data.datasets import summary_of
        from model.training.pace import measure_pace

        machine = Machine(device=device, num_threads=torch.get_num_threads())
        chosen = plan(summary_of(dataset), machine, name)
        config = overlaid(chosen.config, wish.changes)
        self.use_threads(config.network, dataset.event_shape, config.largest_batch_size)
        seconds = 60 * wish.minutes
        step_s = measure_pace(config, dataset, device, ranks, seconds=timing_s(wish.minutes))
        tuning_s = self.settings.tuning_share * seconds if config.tune else 0.0
        left_s = begun + seconds - tuning_s - time.monotonic()
        left_s = float(ranks.sum(torch.tensor(left_s if ranks.leads else 0.0)))
        config = overlaid(fit(config, step_s, left_s), wish.changes)
        if self.rank == 0:
            spec = {**record.spec, "config": to_dict(config), "plan": None}
            self.patiently(lambda: self.store.decide(self.lease, spec))
            reasons = [*chosen.reasons, *expectations(config, step_s, wish.minutes)]
            self.telemetry.event(PlanEvent(minutes=wish.minutes, steps=config.steps, reasons=reasons))
        return config

    def _ranks(self, record: JobRecord) -> AbstractContextManager[Ranks]:
        from model.training.ranks import ALONE, joined

        if self.num_ranks == 1:
            return nullcontext(ALONE)
        return joined(self.rank, self.num_ranks, self._device(record), leads_node=self.local_rank == 0)

    def _device(self, record: JobRecord) -> str:
        """The device of this rank."""
        device = device_of(record)
        return f"cuda:{self.local_rank}" if device == "cuda" and self.num_ranks > 1 else device

    def _deliver(self, event: TrainEvent, spool: Spool) -> None:
        match event:
            case BatchEvent():
                self.telemetry.event(event)
            case StepEvent():
                log.info("training_step", step=event.step, loss=event.loss)
                self.telemetry.event(event)
                self.telemetry.progress(_progress(event), event.loss)
            case SampleEvent():
                spool.add_grid(event.step, event.samples)
            case CheckpointEvent():
                spool.add_checkpoint(event.step, event.write)
            case RollbackEvent():
                log.warning("training_diverged", step=event.step, to_step=event.to_step, reason=event.reason)
                self.telemetry.event(event)
            case HealthEvent():
                log.info("training_judged", **asdict(event))
                self.telemetry.health(event)
            case DoneEvent():
                # Asked to stop after the last step was done: there is nothing left to stop.
                self._stop_reason = self.watch.reason if event.stopped else None
                log.info("training_done", step=event.step, stopped=event.stopped)

    def _start_spool(self, model_id: str, spec: TrainSpec) -> Spool:
        spool = Spool(
            self.artifacts,
            lease=self.lease,
            model_id=model_id,
            directory=self.directory,
            on_checkpoint=lambda checkpoint: self._committed(checkpoint, model_id, spec),
            on_grid=lambda step, key: self.telemetry.event(GridEvent(step=step, key=key)),
            confirm_fn=self.watch.confirm,
        )
        spool.start()
        return spool

    def _committed(self, checkpoint: CheckpointStoredEvent, model_id: str, spec: TrainSpec) -> None:
        """Tell of a checkpoint, delete those it makes superfluous, and keep where a wiped Redis does not reach what was
        told so far.
        """
        log.info("checkpoint_committed", **asdict(checkpoint))
        self.telemetry.checkpoint(checkpoint)
        retention = Retention(
            keep_last=spec.keep_last or self.settings.keep_last,
            keep_every=spec.keep_every or self.settings.keep_every,
        )
        try:
            self.watch.confirm()
            steps = Deletions(self.store).thin_out(model_id, retention, self._checkpoint_every)
            if steps:
                self.telemetry.event(CheckpointsDeletedEvent(steps=steps, **asdict(retention)))
        except (ArtifactError, RedisError, RecordError) as error:  # after the next checkpoint, then
            log.warning("checkpoints_not_thinned_out", error=type(error).__name__)
        try:
            self.store.events.archive(self.lease.job_id)
        except (ArtifactError, RedisError) as error:
            log.warning("events_not_archived", error=type(error).__name__)

    @property
    def _delivery_patience_s(self) -> float:
        """Seconds to wait for storage at the end; what an interrupted attempt leaves, the next one delivers."""
        if self.watch.reason is StopReason.interrupted:
            return self.settings.kill_grace_s / 3
        return self.settings.storage_patience_s

    def _describe_model(self, model_id: str, record: JobRecord, config: TrainConfig, about: Mapping[str, Any]) -> None:
        if self.artifacts.has_model(model_id):
            return
        self.artifacts.put_model(
            model_id,
            {
                "id": model_id,
                "name": record.name,
                "dataset": config.dataset,
                "config": to_dict(config),
                **about,
                "job_id": record.id,
                "created_at": datetime.now(UTC).isoformat(),
            },
        )

    def _found_together(self, ranks: Ranks, model_id: str, find_fn: Callable[[], Snapshot | None]) -> Snapshot | None:
        """The checkpoint that the leading rank finds, for all ranks.

        The first rank of every machine leaves the files in a folder for the others. Raises ArtifactMissing or
        ArtifactDamaged if another machine cannot read what the leading rank has read.
        """
        from model.checkpoints.checkpoint import read_snapshot

        snapshot = self.patiently(find_fn) if self.rank == 0 else None
        step = ranks.told(-1 if snapshot is None else snapshot.step)
        if step >= 0:
            with ranks.leader_first():
                if ranks.leads_node and self.rank > 0:
                    self.patiently(lambda: self.artifacts.fetch_checkpoint(model_id, step, self._fetched))
                if snapshot is None:
                    snapshot = read_snapshot(self._fetched)
        ranks.wait()
        if ranks.leads_node:
            shutil.rmtree(self._fetched, ignore_errors=True)
        return snapshot

    @property
    def _fetched(self) -> Path:
        return self.directory / "resume"

    def _newest_snapshot(self, model_id: str) -> Snapshot | None:
        """The newest checkpoint that can be read, among them those that an earlier attempt left in the spool."""
        deliver_leftovers(self.artifacts, self.lease, model_id, self.directory.parent, self.watch.confirm)
        for checkpoint in reversed(self.artifacts.list_checkpoints(model_id)):
            if (snapshot := self._snapshot(model_id, checkpoint.step)) is not None:
                return snapshot
        return None

    def _snapshot(self, model_id: str, step: int) -> Snapshot | None:
        """The committed checkpoint of a step; None if it is unreadable. Its files stay. Raises StorageUnavailable."""
        from model.checkpoints.checkpoint import read_snapshot

        shutil.rmtree(self._fetched, ignore_errors=True)
        try:
            self.artifacts.fetch_checkpoint(model_id, step, self._fetched)
            return read_snapshot(self._fetched)
        except (ArtifactMissing, ArtifactDamaged, CheckpointError) as error:
            self.telemetry.event(NoticeEvent(text=f"checkpoint {step} is unusable: {error}"))
            shutil.rmtree(self._fetched, ignore_errors=True)
            return None


def _progress(event: StepEvent) -> Progress:
    remaining = event.total_steps - event.step
    return Progress(
        step=event.step,
        total_steps=event.total_steps,
        percent=round(100 * event.step / event.total_steps, 2),
        steps_per_second=event.steps_per_second,
        eta_seconds=remaining / event.steps_per_second if event.steps_per_second > 0 else None,
    )

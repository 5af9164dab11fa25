"""The work of tuning: what samples of a committed checkpoint cost, and how near they come to held-out data.

Samples come from the engine, as those that are served. A training that tunes at its end takes the same way
(`tune_checkpoint`). What was measured is not kept between attempts: the next one starts again from its seed.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from model.errors import DataError, ModelError
from model.frontier import Frontier, Point, Setting, TuneConfig, candidates, choose
from worker.jobs.event import NoticeEvent, StartedEvent, TunedEvent, TuningEvent
from worker.jobs.kinds import TuneSpec
from worker.jobs.record import JobRecord, Progress
from worker.kinds.calibrate import data_of, load_checkpoint
from worker.queue.tasks import DrawOrder
from worker.trainer.attempt import Attempt, device_of
from worker.trainer.watch import StopReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model.data.datasets import Dataset
    from model.energies.energy_model import EnergyModel
    from model.evaluation import Reference
    from worker.engine.engine import Engine

log = structlog.get_logger(__name__)

_NUM_GROUPS = 5
"""Samples are drawn in so many groups, whose spread tells the error of a distance."""
_MIN_HELD_OUT = 20
_MAX_EVENTS = 2_000


class Run(Attempt):
    """One attempt at tuning a checkpoint."""

    def work(self, record: JobRecord) -> StopReason | None:
        """Tune the checkpoint that the spec names."""
        spec = TuneSpec.of(record.spec)
        assert record.model_id is not None
        self.telemetry.event(StartedEvent(step=spec.step, attempt=record.attempt, device=device_of(record)))
        return tune_checkpoint(self, record, record.model_id, spec.step, spec.config, report_progress=True)


def tune_checkpoint(
    attempt: Attempt, record: JobRecord, model_id: str, step: int, config: TuneConfig, *, report_progress: bool
) -> StopReason | None:
    """Measure the frontier of a committed checkpoint, and store it. Returns why it stopped early, or None.

    Every setting is a `tuning` event, and part of the job's progress if wanted. Without time for the model's own
    setting, which is measured first, nothing is stored. Raises ModelError, also without time for one setting,
    ArtifactMissing, StorageUnavailable, StaleLease.
    """
    tuning = _Tuning(attempt, step, config, load_checkpoint(attempt, model_id, step, device_of(record)))
    points = tuning.points(report_progress=report_progress)
    if attempt.watch.reason is not None:
        return attempt.watch.reason
    if not points:
        limit = "any time" if config.max_seconds is None else f"{config.max_seconds:.2g} s"
        raise ModelError(
            f"no setting gave {config.num_samples} finite samples within {limit}; `recovery tune` "
            "with more time does, or after more training"
        )
    found = tuning.frontier(points).to_dict()
    attempt.patiently(attempt.watch.confirm)
    attempt.patiently(lambda: attempt.artifacts.put_frontier(model_id, step, found))
    attempt.telemetry.event(TunedEvent(step=step, model_id=model_id, frontier=found))
    log.info("tuned", model_id=model_id, step=step, num_points=len(points), standard=found["standard"])
    return None


class _Tuning:
    """The measurements of one checkpoint."""

    def __init__(self, attempt: Attempt, step: int, config: TuneConfig, model: EnergyModel) -> None:
        from model.chains.descent import evaluations_per_sample
        from model.chains.sampling import chosen_settings
        from model.evaluation import Reference
        from worker.engine.engine import Engine

        self._attempt, self._step, self._config, self._model = attempt, step, config, model
        self._began_at = time.monotonic()
        dataset = _held_out_of(attempt, model)
        train, held_out = (events[:_MAX_EVENTS].numpy() for events in (dataset.train, dataset.held_out))
        self._num_held_out = len(held_out)
        self._reference: Reference = Reference(train, held_out, num_samples=config.num_samples)
        self._engine: Engine = Engine(lambda _: model)
        self._costs = {
            one: evaluations_per_sample(
                model.config,
                chosen_settings(model, start=one.start, num_steps=one.num_steps, noise_scale=None, levels=()),
            )
            for one in candidates(model.config.sampling, config.max_steps)
        }

    def points(self, *, report_progress: bool) -> list[Point]:
        """Measure one setting after the other, the model's own first, while there is time."""
        own, *others = self._costs
        order = [own, *sorted(others, key=self._costs.__getitem__)]
        points, done, total = [], 0, sum(self._costs.values())
        for index, setting in enumerate(order, 1):
            if (groups := self._drawn(setting)) is None:
                break
            done += self._costs[setting]
            if (point := self._measured(setting, groups)) is not None:
                points.append(point)
                self._attempt.telemetry.event(
                    TuningEvent(
                        step=self._step,
                        index=index,
                        num_settings=len(order),
                        point=asdict(point),
                        elapsed_s=round(time.monotonic() - self._began_at, 2),
                    )
                )
            if report_progress:
                percent = round(100 * done / total, 2)
                self._attempt.telemetry.progress(Progress(step=index, total_steps=len(order), percent=percent))
        return points

    def frontier(self, points: list[Point]) -> Frontier:
        """Return the frontier of these points, with the settings that they choose."""
        return Frontier(
            step=self._step,
            points=tuple(sorted(points, key=lambda point: point.evaluations)),
            **choose(points),
            features=self._reference.name,
            num_features=self._reference.num_features,
            num_samples=self._config.num_samples,
            num_held_out=self._num_held_out,
            seed=self._config.seed,
            created_at=datetime.now(UTC).isoformat(),
        )

    def _drawn(self, setting: Setting) -> list[NDArray[np.float32]] | None:
        """The samples of a setting in groups, as the network sees data; None when there is no time for them."""
        config = self._config
        order = DrawOrder(num_images=config.num_samples, seed=config.seed, **asdict(setting))
        ticket = self._engine.draw("model", order)
        while ticket.is_open:
            if self._attempt.watch.should_stop() or self._is_late():
                self._engine.cancel(ticket)
                self._engine.step()
                return None
            self._engine.step()
        x = self._model.space.encode(ticket.future.result().x).numpy(force=True)
        return [x[index::_NUM_GROUPS] for index in range(_NUM_GROUPS)]

    def _is_late(self) -> bool:
        limit_s = self._config.max_seconds
        return limit_s is not None and time.monotonic() - self._began_at > limit_s

    def _measured(self, setting: Setting, groups: list[NDArray[np.float32]]) -> Point | None:
        """The point of a setting; None, with a notice, when its samples are not finite."""
        try:
            likeness = self._reference.compare(groups)
        except DataError as error:
            text = f"start {setting.start!r} with {setting.num_steps} steps cannot be measured: {error}"
            self._attempt.telemetry.event(NoticeEvent(text=text))
            return None
        return Point(**asdict(setting), evaluations=self._costs[setting], **asdict(likeness))


def _held_out_of(attempt: Attempt, model: EnergyModel) -> Dataset:
    """The data of a model. Raises ModelError if they are not known, or too few of them are held out."""
    dataset = data_of(attempt, model)
    if dataset is None:
        raise ModelError("it is not known what this model was trained on; import it again with --dataset, then tune")
    if len(dataset.held_out) < _MIN_HELD_OUT:
        raise ModelError(
            f"{len(dataset.held_out)} items of dataset {dataset.name!r} are held out; expected at least "
            f"{_MIN_HELD_OUT} to compare samples with"
        )
    return dataset

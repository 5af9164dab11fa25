"""The work of a calibration: log Z of a committed checkpoint, into storage.

A training that calibrates at its end takes the same way (`calibrate_checkpoint`). What was walked is not kept between
attempts: the next one starts again from its seed, and ends with the same numbers.
"""

from __future__ import annotations

import math
import shutil
import time
from typing import TYPE_CHECKING

import structlog

from model.config import UNKNOWN_DATASET, CalibrationConfig
from model.errors import ShapeError
from worker.datasets.names import fetch_dataset, unread_column
from worker.jobs.event import CalibratedEvent, CalibrationEvent, StartedEvent
from worker.jobs.kinds import CalibrateSpec
from worker.jobs.record import JobRecord, Progress
from worker.trainer.attempt import Attempt, device_of
from worker.trainer.watch import StopReason

if TYPE_CHECKING:
    from model.data.datasets import Dataset
    from model.densities.log_z import LogZ
    from model.energies.energy_model import EnergyModel

log = structlog.get_logger(__name__)


class Run(Attempt):
    """One attempt at a calibration job."""

    def work(self, record: JobRecord) -> StopReason | None:
        """Calibrate the checkpoint that the spec names."""
        spec = CalibrateSpec.of(record.spec)
        assert record.model_id is not None
        self.telemetry.event(StartedEvent(step=spec.step, attempt=record.attempt, device=device_of(record)))
        return calibrate_checkpoint(self, record, record.model_id, spec.step, spec.config, report_progress=True)


def calibrate_checkpoint(
    attempt: Attempt, record: JobRecord, model_id: str, step: int, config: CalibrationConfig, *, report_progress: bool
) -> StopReason | None:
    """Estimate log Z of a committed checkpoint, score its data, store both. Returns why it stopped early, or None.

    Every round is a `calibration` event, and the job's progress if wanted. Raises ModelError, ArtifactMissing,
    StorageUnavailable, StaleLease.
    """
    from model.densities import density
    from model.densities.calibration import continuous, summarize

    model = load_checkpoint(attempt, model_id, step, device_of(record))
    attempt.use_threads(model.config.network, tuple(model.event_shape), config.num_chains)
    # before the chains: a dataset that is gone should not cost an hour
    dataset = data_of(attempt, model)
    rounds, log_z, began_at = 0, None, time.monotonic()
    tolerance = density.tolerance_of(model, config.tolerance)
    for log_z in density.calibrate(
        model,
        seed=config.seed,
        num_chains=config.num_chains,
        tolerance=tolerance,
        max_bridges=config.max_bridges,
        max_chains=config.max_chains,
        num_leapfrog=config.num_leapfrog,
        x_data=None if dataset is None else continuous(dataset, dataset.held_out),
        stop_fn=attempt.watch.should_stop,
    ):
        rounds = max(rounds, math.ceil(math.log2(log_z.num_bridges))) + 1  # those of too few bridges are left out
        attempt.telemetry.event(_round(log_z, step, rounds, config, tolerance, time.monotonic() - began_at))
        if report_progress:
            attempt.telemetry.progress(_progress(rounds, config.max_rounds, config))
    if attempt.watch.reason is not None or log_z is None:
        return attempt.watch.reason
    found = summarize(model, dataset, log_z, config, step=step).to_dict()
    attempt.patiently(attempt.watch.confirm)
    attempt.patiently(lambda: attempt.artifacts.put_calibration(model_id, step, found))
    attempt.telemetry.event(CalibratedEvent(step=step, model_id=model_id, calibration=found))
    if report_progress:
        attempt.telemetry.progress(_progress(rounds, rounds, config))
    log.info("calibrated", model_id=model_id, step=step, log_z=log_z.estimate, verdict=found["verdict"])
    return None


def load_checkpoint(attempt: Attempt, model_id: str, step: int, device: str) -> EnergyModel:
    """Load the model of a committed checkpoint. Raises ArtifactMissing, StorageUnavailable, ModelError."""
    from model.checkpoints.checkpoint import SAMPLING_FILES, load_model

    directory = attempt.directory / "checkpoint"
    try:
        attempt.patiently(lambda: attempt.artifacts.fetch_checkpoint(model_id, step, directory, names=SAMPLING_FILES))
        return load_model(directory, device)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def data_of(attempt: Attempt, model: EnergyModel) -> Dataset | None:
    """The data that the model was trained on; None where an import did not say. Raises DataError, ShapeError."""
    from model import data

    name, image_size, event_shape = model.config.dataset, model.config.image_size, tuple(model.event_shape)
    if name == UNKNOWN_DATASET:
        return None
    column = model.config.label_column
    location = attempt.patiently(lambda: fetch_dataset(name, attempt.settings, attempt.artifacts, image_size, column))
    dataset = data.load(location, attempt.settings.read_limits, image_size, unread_column(name, column))
    if dataset.event_shape != event_shape:
        raise ShapeError(
            f"dataset {name!r} holds events of shape {dataset.event_shape}, the model's are of {event_shape}; "
            "import the model again with the dataset and the image size that belong together"
        )
    return dataset


def _round(
    log_z: LogZ, step: int, index: int, config: CalibrationConfig, tolerance: float, elapsed_s: float
) -> CalibrationEvent:
    return CalibrationEvent(
        step=step,
        round=index,
        max_rounds=config.max_rounds,
        num_bridges=log_z.num_bridges,
        num_chains=log_z.num_chains,
        lower=log_z.lower,
        upper=log_z.upper,
        upper_start=log_z.upper_start,
        estimate=log_z.estimate,
        std_error=log_z.std_error,
        verdict=log_z.verdict(tolerance),
        acceptance_rate=log_z.acceptance_rate,
        elapsed_s=elapsed_s,
    )


def _progress(done: int, total: int, config: CalibrationConfig) -> Progress:
    """The progress after `done` rounds. Later rounds take longer: the share is that of what the rounds cost."""
    return Progress(step=done, total_steps=total, percent=round(100 * config.work(done) / config.work(total), 2))

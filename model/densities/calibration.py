"""The record of a calibration: log Z of one checkpoint from both sides, and how the data score with it.

Log densities are in nats and in the data's units. They are those of the data blurred by the model's own noise (see
`model.densities.density`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from model.config import CalibrationConfig, from_dict, to_dict
from model.data.datasets import Dataset
from model.data.events import Events
from model.densities.density import bits_per_dim, blur_std, log_density, tolerance_of
from model.densities.log_z import LogZ
from model.densities.verdict import Verdict
from model.energies.energy_model import EnergyModel
from model.errors import CalibrationError, ConfigError
from model.noise import SharedNoise, make_generator

VERSION = 1
QUANTILE_LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_MAX_SCORED = 10_000  # events of each split that are scored; their mean is then known far better than log Z
_DEQUANTIZATION_SEED = 0
_DERIVED = ("estimate", "std_error", "interval")  # are stored with log Z for those who read the JSON


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """A share `level` of the training data has a log density below `log_density`."""

    level: float
    log_density: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """log Z of one checkpoint, and what follows from it."""

    step: int
    """The training step of the checkpoint."""
    event_shape: tuple[int, ...]
    log_z: LogZ
    """Stochastic lower and upper bounds of log Z, in nats; the upper bound is as good as its start, `upper_start`."""
    seed: int
    tolerance: float
    """The error, in nats, that was asked for; `log_z.std_error` says what was reached, or None if that is not known."""
    num_held_out: int
    """The number of held-out events scored; 0 if the model's data are not known (`model.checkpoints.official`)."""
    held_out_log_density: float | None
    """The mean log density of held-out events, dequantized if discrete; None if no events were scored."""
    held_out_bits_per_dim: float | None
    """The mean code length of these events in bits per dimension; None for continuous data, or if none were scored."""
    bin_width: float | None
    """The spacing of the values that the data can take, in the data's units; None for continuous data."""
    blur_std: float
    """σ̄_0/ᾱ_0: the density is that of the data with noise of this size (`model.densities.density.blur_std`)."""
    train_quantiles: tuple[Quantile, ...]
    """Quantiles of the training data's log densities; empty if the data are not known."""
    created_at: str
    """The time at which the calibration was made, in ISO 8601 and UTC."""

    @property
    def verdict(self) -> Verdict:
        """What the sides of log Z tell (`LogZ.verdict`)."""
        return self.log_z.verdict(self.tolerance)

    @property
    def converged(self) -> bool:
        """Whether log Z is known within the tolerance. If not, log densities are off by more, all by the same."""
        return self.verdict == "converged"

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as JSON values.

        They include what follows from the sides of log Z: the estimate, its error and interval, and the verdict.
        """
        derived = {name: getattr(self.log_z, name) for name in _DERIVED}
        verdict = {"converged": self.converged, "verdict": self.verdict}
        return {"version": VERSION, **to_dict(self), "log_z": dataclasses.asdict(self.log_z) | derived, **verdict}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Return the calibration whose `to_dict` was `values`. Raises CalibrationError if they cannot be read."""
        if values.get("version") != VERSION:
            raise CalibrationError(
                f"a calibration has version {values.get('version')!r}; this release reads {VERSION}. Calibrate again"
            )
        log_z = {name: value for name, value in values["log_z"].items() if name not in _DERIVED}
        known = {name: value for name, value in values.items() if name not in ("version", "converged", "verdict")}
        try:
            return from_dict(cls, known | {"log_z": log_z})
        except (ConfigError, TypeError) as error:
            raise CalibrationError(f"a calibration cannot be read: {error}. Calibrate again") from error


def summarize(
    model: EnergyModel, dataset: Dataset | None, log_z: LogZ, config: CalibrationConfig, *, step: int
) -> Calibration:
    """Make the calibration of a checkpoint from `log_z`, and from how `dataset`, if it is known, scores with it.

    Raises CalibrationError if log Z is not finite.
    """
    if not math.isfinite(log_z.estimate):
        raise CalibrationError(
            f"log Z is {log_z.estimate}; expected a finite number. The energies may have diverged; "
            "calibrate an earlier checkpoint, or train with a lower learning rate"
        )
    dim = torch.Size(model.event_shape).numel()
    bin_width = float((model if dataset is None else dataset).space.bin_width) or None
    num_held_out, mean = 0, None
    quantiles: tuple[Quantile, ...] = ()
    if dataset is not None:
        held_out, train = (_scores(model, dataset, events, log_z) for events in (dataset.held_out, dataset.train))
        num_held_out, mean, quantiles = len(held_out), held_out.mean(), _quantiles(train)
    return Calibration(
        step=step,
        event_shape=tuple(model.event_shape),
        log_z=log_z,
        seed=config.seed,
        tolerance=tolerance_of(model, config.tolerance),
        num_held_out=num_held_out,
        held_out_log_density=None if mean is None else float(mean),
        held_out_bits_per_dim=None if mean is None or bin_width is None else float(bits_per_dim(mean, dim, bin_width)),
        bin_width=bin_width,
        blur_std=blur_std(model),
        train_quantiles=quantiles,
        created_at=datetime.now(UTC).isoformat(),
    )


def _quantiles(scores: Tensor) -> tuple[Quantile, ...]:
    values = torch.quantile(scores, torch.tensor(QUANTILE_LEVELS, dtype=scores.dtype)).tolist()
    return tuple(Quantile(level=level, log_density=value) for level, value in zip(QUANTILE_LEVELS, values, strict=True))


def _scores(model: EnergyModel, dataset: Dataset, events: Events, log_z: LogZ) -> Tensor:
    """Return log p (N,), in the data's units and on the CPU, of the first `events`, which are in the dataset's space.

    E[log p] over the noise of one bin bounds the log probability of a discrete value, less the log of the bin's volume,
    from below (Uria et al. 2013, Theis et al. 2016).
    """
    return log_density(model, continuous(dataset, events), log_z.estimate).cpu()


def continuous(dataset: Dataset, events: Events) -> Tensor:
    """Return the first `events`, which are in the dataset's space, in the data's units, dequantized if discrete."""
    noise = SharedNoise(make_generator(_DEQUANTIZATION_SEED))
    return dataset.space.dequantized(dataset.space.decode(events[:_MAX_SCORED]), noise)

"""The errors this package raises; each message says what was wrong, what was expected and what to do."""

from __future__ import annotations


class ModelError(Exception):
    """Root of every error raised on purpose by `model`."""


class ConfigError(ModelError, ValueError):
    """A configuration value is wrong; the message names the field, the value and the allowed range.

    `field` is the path of the field, such as `chain.num_steps`, if one field is to blame.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.others: tuple[ConfigError, ...] = ()

    @property
    def problems(self) -> list[ConfigError]:
        """All errors that were found, with this one first."""
        return [self, *self.others]


class ShapeError(ModelError, ValueError):
    """A tensor or array does not have the shape the operation needs."""


class DataError(ModelError, ValueError):
    """A dataset is missing, unreadable or holds values that cannot be trained on."""


class DataTooLarge(DataError):
    """A dataset is larger than what is accepted; the message names the member, its size and the limit."""


class CheckpointError(ModelError):
    """A checkpoint is absent, incomplete, damaged or of an unknown version."""


class CalibrationError(ModelError):
    """log Z could not be estimated."""


class DivergenceError(ModelError):
    """Training left the region where energies mean anything; `step` is the step at which this was noticed."""

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


class RankError(ModelError):
    """Another process of the same training is gone; this one can only end."""

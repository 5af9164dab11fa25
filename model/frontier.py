"""The frontier of a checkpoint: what its samples cost, and how near they come to held-out data, setting by setting.

From the points that were measured it chooses three settings, by which requests for samples are answered. The module
imports no torch, since the service reads frontiers too; `model.evaluation` and the job of kind `tune` make the points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Interval

from model.config import ChainStart, SamplingConfig, Seed, from_dict, to_dict
from model.errors import ConfigError
from model.fields import Config

Quality = Literal["draft", "standard", "best"]
QUALITIES: tuple[Quality, ...] = get_args(Quality)
FEWEST_SAMPLES = 100
"""The smallest number of samples from which a distance is taken."""
_NOISE = 2.0
"""Two distances are told apart if they differ by more than this many standard errors of their difference."""
_DRAFT_RATIO = 1.5
"""The distance of a draft is at most this multiple of the best one, within the noise."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig(Config):
    """How the frontier of a checkpoint is measured."""

    path: ClassVar[str] = ""

    seed: Seed = 0
    """The seed of the samples; the same seed gives the same samples."""
    num_samples: Annotated[int, Interval(ge=FEWEST_SAMPLES, le=50_000)] = 1000
    """The number of samples that are drawn with each setting."""
    max_steps: Annotated[int, Interval(ge=0, le=1000)] = 16
    """The largest number of chain steps per level that is tried, beside the model's own, among 0, 1, 2, 4, …"""
    max_seconds: Annotated[float, Interval(ge=1, le=1e6)] | None = None
    """The time after which no other setting is measured; when absent, all are."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What decides the cost of a sample."""

    start: ChainStart
    """where the chain of each level starts"""
    num_steps: int
    """K, the chain steps per level"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting, measured. Distances are in the units of the features that the frontier names."""

    start: ChainStart
    num_steps: int
    evaluations: int
    """gradient evaluations that a sample takes"""
    frechet: float
    """Fréchet distance of the samples to held-out data"""
    frechet_error: float
    """its standard error, from groups of the samples"""
    one_nn: float
    """accuracy of the nearest neighbour at telling samples from held-out data; 0.5 is perfect"""
    one_nn_error: float
    """its standard error"""

    @property
    def setting(self) -> Setting:
        """The setting that was measured."""
        return Setting(start=self.start, num_steps=self.num_steps)


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """The points of one checkpoint, in the order of their evaluations, and the three that were chosen of them."""

    step: int
    """the training step of the checkpoint"""
    points: tuple[Point, ...]
    draft: Setting
    standard: Setting
    best: Setting
    features: Literal["data", "pca"]
    """what was compared: the data as the network sees them, or their largest principal components"""
    num_features: int
    num_samples: int
    """samples of each point"""
    num_held_out: int
    """held-out events that they were compared with"""
    seed: int
    created_at: str
    """in ISO 8601 and UTC"""

    def setting(self, quality: Quality) -> Setting:
        """Return the setting that was chosen for a quality."""
        found: Setting = getattr(self, quality)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the frontier as JSON values."""
        return {"version": 1, **to_dict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Frontier:
        """Return the frontier whose `to_dict` was `values`. Raises ConfigError if they cannot be read."""
        if values.get("version") != 1:
            raise ConfigError(
                f"a frontier has version {values.get('version')!r}; this release reads 1. Tune the checkpoint again"
            )
        return from_dict(cls, {name: value for name, value in values.items() if name != "version"})


def candidates(own: SamplingConfig, max_steps: int) -> list[Setting]:
    """Return the settings to measure: the model's own, which is the one to beat, then others with growing K.

    These start in second order, which was the best start of few evaluations wherever it was measured.
    """
    mine = Setting(start=own.start, num_steps=own.num_steps)
    doubling = [0, *(2**power for power in range(max_steps.bit_length()) if 2**power <= max_steps)]
    others = [Setting(start="multistep", num_steps=num_steps) for num_steps in doubling]
    return [mine, *(one for one in others if one != mine)]


def choose(points: Iterable[Point]) -> dict[Quality, Setting]:
    """Return the settings for the three qualities.

    `best` has the smallest distance. `standard` has the fewest evaluations among those that the noise does not tell
    from it, by distance and by nearest neighbours. `draft` has the fewest among those within half as much again.
    Raises ConfigError without points.
    """
    ordered = sorted(points, key=lambda point: (point.evaluations, point.frechet))
    if not ordered:
        raise ConfigError("no setting was measured; expected at least one. Give the job more time")
    best = min(ordered, key=lambda point: point.frechet)
    standard = next(one for one in ordered if _is_as_good(one, best))
    draft = next(one for one in ordered if one.frechet <= _DRAFT_RATIO * best.frechet + _noise(one, best))
    return {"draft": draft.setting, "standard": standard.setting, "best": best.setting}


def _noise(one: Point, other: Point) -> float:
    return _NOISE * math.hypot(one.frechet_error, other.frechet_error)


def _is_as_good(one: Point, best: Point) -> bool:
    apart = _NOISE * math.hypot(one.one_nn_error, best.one_nn_error)
    return one.frechet <= best.frechet + _noise(one, best) and one.one_nn <= best.one_nn + apart

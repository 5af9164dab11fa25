"""The interactive tasks: what a sampler answers while a client waits. `TASKS` lists them all.

Each is a request, its reply, and a module of worker/sampler/tasks/ that makes the one of the other. Its route in
service/routes/ asks for it with `service.work.exchange.ask`. This module imports neither torch nor Celery.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from model.composition import Composition
from model.config import ChainStart, KernelKind, Precision
from worker.queue.messages import DoubleArray, FloatArray, R, SamplerReply, SamplerRequest

Q = TypeVar("Q", bound=SamplerRequest)


class DrawOrder(BaseModel):
    """Which samples of a model to draw, and how; sample i of a seed does not depend on their number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_images: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0, lt=2**63)
    num_steps: int | None = Field(default=None, ge=0, le=10_000, validation_alias=AliasChoices("num_steps", "steps"))
    """K, chain steps per level; None is the model's own."""
    start: ChainStart | None = None
    """Where the chain of each level starts; None is the model's own."""
    noise_scale: float | None = Field(default=None, ge=0, le=2)
    """What the chain's noise is multiplied by; None is the model's own."""
    labels: tuple[Composition, ...] = ()
    """What is asked of the samples' labels, which take them in turn; empty for samples of any class."""
    adjusted: bool | None = None
    """Whether a Metropolis test decides on each step; None is the model's own, and yes for products of labels."""
    levels: tuple[int, ...] = ()
    """Levels whose x_t is returned too, and told as it is reached."""


class SampleRequest(SamplerRequest, DrawOrder):
    """Draw samples of a model."""

    task = "worker.tasks.sample"

    precision: Precision = "float32"
    stream: bool = False
    """Send a reply for each of the levels as it is reached, before the one with the samples."""

    @property
    def network_precision(self) -> Precision:
        """The precision of the network's arithmetic."""
        return self.precision


class SampleReply(SamplerReply):
    """Samples."""

    seed: int
    precision: Precision = "float32"
    """Of the network that drew them."""
    kernel: KernelKind | None = None
    """By which their chains moved."""
    level_reached: int | None = None
    """Of a stream: this is no end, but x_t of this level, alone in `levels`."""
    x: FloatArray | None = Field(default=None, exclude=True, repr=False)
    """(N, *event), images in [−1, 1]."""
    levels: dict[int, FloatArray] = Field(default_factory=dict, exclude=True, repr=False)
    """Intermediate x_t by level, each (N, *event)."""

    @property
    def is_last(self) -> bool:
        """Whether no other reply to the same request follows: this one is not about a level on the way."""
        return self.level_reached is None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """`x`, and the levels under their numbers."""
        arrays = {} if self.x is None else {"x": self.x}
        arrays |= {str(level): x for level, x in self.levels.items()}
        return {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}

    @classmethod
    def from_arrays(cls, header: dict[str, Any], arrays: dict[str, Any]) -> Self:
        """The reply of that header and those `arrays`."""
        x = arrays.pop("x", None)
        return cls(**header, x=x, levels={int(name): array for name, array in arrays.items()})


class DensityRequest(SamplerRequest):
    """Score the data that lie under `input_key` with a calibrated checkpoint."""

    task = "worker.tasks.density"

    num_paths: int = Field(default=0, ge=0, le=1000)
    """Paths of the second, independent estimate; 0 leaves it out."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the paths."""


class DensityReply(SamplerReply):
    """log densities, float64 nats, (N,) each."""

    seed: int
    calibration: dict[str, Any] | None = None
    """The one that was used: `model.densities.calibration.Calibration.to_dict`."""
    log_density: DoubleArray | None = Field(default=None, exclude=True, repr=False)
    energy: DoubleArray | None = Field(default=None, exclude=True, repr=False)
    bits_per_dim: DoubleArray | None = Field(default=None, exclude=True, repr=False)
    """None for continuous data."""
    path_log_density: DoubleArray | None = Field(default=None, exclude=True, repr=False)
    path_spread: DoubleArray | None = Field(default=None, exclude=True, repr=False)
    """Standard deviation of the single paths' values."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Those that are there."""
        named = {name: getattr(self, name) for name in _DENSITY_ARRAYS}
        return {name: array for name, array in named.items() if array is not None}


_DENSITY_ARRAYS = ("log_density", "energy", "bits_per_dim", "path_log_density", "path_spread")


class ClassifyRequest(SamplerRequest):
    """Tell the class of the data that lie under `input_key` by a conditional checkpoint."""

    task = "worker.tasks.classify"

    noise_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the noise that the data hold, in scaled units."""


class ClassifyReply(SamplerReply):
    """Classes, and how typical the data are of all the model's data."""

    probabilities: FloatArray | None = Field(default=None, exclude=True, repr=False)
    """(N, K) p(k | x)"""
    energy: DoubleArray | None = Field(default=None, exclude=True, repr=False)
    """(N,) nats"""
    less_likely: DoubleArray | None = Field(default=None, exclude=True, repr=False)
    """(N,) the share of held-out data with a higher energy; None where it is not known"""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Those that are there."""
        named = {"probabilities": self.probabilities, "energy": self.energy, "less_likely": self.less_likely}
        return {name: array for name, array in named.items() if array is not None}


class DensityMapRequest(SamplerRequest):
    """Draw the density of a calibrated checkpoint of a 2-D model beside its data."""

    task = "worker.tasks.density_map"


class DensityMapReply(SamplerReply):
    """A picture."""

    png: bytes = Field(default=b"", exclude=True, repr=False)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The file as bytes."""
        return {"png": np.frombuffer(self.png, np.uint8)}

    @classmethod
    def from_arrays(cls, header: dict[str, Any], arrays: dict[str, Any]) -> Self:
        """The reply of that header and those `arrays`."""
        return cls(**header, png=arrays["png"].tobytes())


@dataclass(frozen=True)
class Task(Generic[Q, R]):
    """One interactive task."""

    request: type[Q]
    reply: type[R]
    module: str
    """The module that has its `answer(OpenRequest[Q]) -> R`; a name, since only samplers import it."""

    @property
    def name(self) -> str:
        """The name of its Celery task."""
        return self.request.task


DRAW = Task(SampleRequest, SampleReply, "worker.sampler.tasks.draw")
SCORE = Task(DensityRequest, DensityReply, "worker.sampler.tasks.score")
CLASSIFY = Task(ClassifyRequest, ClassifyReply, "worker.sampler.tasks.classify")
MAP = Task(DensityMapRequest, DensityMapReply, "worker.sampler.tasks.map")

TASKS: tuple[Task[Any, Any], ...] = (DRAW, SCORE, CLASSIFY, MAP)

"""What was asked of the engine and what has come of it so far. A ticket is written by the engine's thread alone."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.chains.sampling import Samples
from model.config import KernelKind, SamplingConfig
from model.energies.energy_model import EnergyModel
from worker.queue.tasks import DrawOrder

T = TypeVar("T")
FloatArray = NDArray[np.float32]


class EngineError(Exception):
    """Root of the engine's refusals."""


class EngineBusy(EngineError):
    """The queue is full; there will be room in about `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the sampler is busy; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class DeadlinePassed(EngineError):
    """Nobody waits for the answer any more."""


class Cancelled(EngineError):
    """The client left."""


class EngineStopped(EngineError):
    """The process is shutting down."""

    def __init__(self) -> None:
        super().__init__("the sampler is shutting down; try again")


class Ticket(Generic[T]):
    """One request in the engine."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        """Unix time, seconds"""
        self.future: Future[T] = Future()
        self.submitted_at = time.perf_counter()
        self.started_at: float | None = None
        self.ended_at: float | None = None

    @property
    def queue_s(self) -> float:
        """Seconds before its first evaluation."""
        return (self.started_at or self.ended_at or time.perf_counter()) - self.submitted_at

    @property
    def compute_s(self) -> float:
        """Seconds from then to its end."""
        return (self.ended_at or time.perf_counter()) - (self.started_at or self.ended_at or time.perf_counter())

    @property
    def is_open(self) -> bool:
        """Whether it still wants an answer."""
        return not self.future.done()

    def start(self) -> None:
        """Its first evaluation is about to happen."""
        if self.started_at is None:
            self.started_at = time.perf_counter()

    def succeed(self, result: T) -> None:
        """End it with a result."""
        self.ended_at = time.perf_counter()
        self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """End it without one."""
        self.ended_at = time.perf_counter()
        self.future.set_exception(error)


@dataclass(frozen=True)
class LevelReached:
    """All chains of a request have reached x_t."""

    level: int
    x: FloatArray
    """(N, *event) scaled as the network sees it"""


class DrawTicket(Ticket[Samples]):
    """A request for samples: which chains wait, and what those that ran have brought."""

    def __init__(
        self,
        order: DrawOrder,
        first: int,
        settings: SamplingConfig,
        cost: int,
        kernel: KernelKind,
        event_shape: tuple[int, ...],
        deadline: float,
    ) -> None:
        super().__init__(deadline)
        self.order = order
        self.first = first
        """the place of the first sample in the stream of the order's seed"""
        self.settings = settings
        self.cost = cost
        """gradient evaluations per chain"""
        self._kernel = kernel
        self.num_started = 0
        self._num_ended = 0
        self._x = np.zeros((order.num_images, *event_shape), np.float32)
        self._levels = {level: np.zeros_like(self._x) for level in order.levels}
        self._num_missing = dict.fromkeys(order.levels, order.num_images)
        self._reached: queue.SimpleQueue[LevelReached | None] = queue.SimpleQueue()
        self.future.add_done_callback(lambda _: self._reached.put(None))

    @property
    def num_waiting(self) -> int:
        """Chains that have not begun."""
        return self.order.num_images - self.num_started

    def levels_reached(self) -> Iterator[LevelReached]:
        """Every level as all chains have reached it, until the request has ended, well or not."""
        while (reached := self._reached.get()) is not None:
            yield reached

    def wants(self, level: int) -> bool:
        """Whether x_t is kept."""
        return level in self._levels

    def reach(self, image: int, level: int, x: Tensor) -> None:
        """Chain `image` is at x_t (*event)."""
        self._levels[level][image] = x.numpy(force=True)
        self._num_missing[level] -= 1
        if self._num_missing[level] == 0:
            self._reached.put(LevelReached(level, self._levels[level]))

    def end_chain(self, image: int, x: Tensor) -> None:
        """Chain `image` has brought its sample (*event)."""
        import torch

        self._x[image] = x.numpy(force=True)
        self._num_ended += 1
        if self._num_ended == self.order.num_images:
            levels = {level: torch.from_numpy(kept) for level, kept in self._levels.items()}
            self.succeed(Samples(torch.from_numpy(self._x), levels, self.cost, self._kernel))


WorkFn = Callable[[EnergyModel], Generator[None, None, T]]
"""Work on a frozen model in pieces, one a turn; it returns the result."""


class WorkTicket(Ticket[T]):
    """Anything else that needs a model: log densities."""

    def __init__(self, work_fn: WorkFn[T], deadline: float) -> None:
        super().__init__(deadline)
        self._work_fn = work_fn
        self._pieces: Generator[None, None, T] | None = None

    def advance(self, model: EnergyModel) -> None:
        """One piece. An error in it is the answer."""
        self.start()
        try:
            if self._pieces is None:
                self._pieces = self._work_fn(model)
            next(self._pieces)
        except StopIteration as end:
            self.succeed(end.value)
        except Exception as error:  # told to whoever asked; nothing is swallowed
            self.fail(error)

    def close(self) -> None:
        """Let go of what the pieces hold."""
        if self._pieces is not None:
            self._pieces.close()


AnyTicket = DrawTicket | WorkTicket[Any]

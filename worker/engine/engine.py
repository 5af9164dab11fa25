"""The sampling engine: chains of all requests share every gradient evaluation, as language-model servers batch tokens.

One thread runs the loop: take orders → choose a model → one evaluation of all its chains, or a piece of other work.
A model's network takes the level as a vector, so chains of any request, level and step fit into one batch; a chain that
ends makes room for the next at once. Models take turns by the time they spent. Everything else (loading, replies)
happens in the threads that ask.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from model.chains.sampling import chosen_settings
from model.config import sampling_kernel
from model.energies.energy_model import EnergyModel
from worker.engine.lanes import Lane
from worker.engine.tickets import (
    AnyTicket,
    Cancelled,
    DeadlinePassed,
    DrawTicket,
    EngineBusy,
    EngineStopped,
    WorkFn,
    WorkTicket,
)
from worker.queue.tasks import DrawOrder

log = structlog.get_logger(__name__)

T = TypeVar("T")
K = TypeVar("K", bound="AnyTicket")
Key = Hashable
LoadFn = Callable[[Any], EnergyModel]


@dataclass(frozen=True)
class EngineLoad:
    """How busy an engine is."""

    models: list[Any]
    """keys of the loaded ones, the latest used last"""
    num_chains: int
    num_waiting: int
    backlog_s: float
    """seconds to do everything accepted so far"""
    num_evaluations: int
    """of batches, since the start"""
    num_row_evaluations: int
    """of the chains in them"""
    num_row_capacity: int
    """chains that would have found room in them"""
    busy_s: float
    """time of all turns"""
    model_bytes: int
    """weights of the loaded models, with what is kept of them"""
    num_model_hits: int
    """requests that found their model loaded"""
    num_model_loads: int
    model_load_s: float
    num_model_evictions: int


class Engine:
    """Draws and computes for many threads. `load_fn(key)` gives the model of a key and may raise what it likes.

    The least recently used idle models are dropped above `max_models` or `max_bytes` of memory. Requests are refused
    (EngineBusy) when everything accepted before would take longer than `queue_s`. `max_rows` None measures the batch.
    """

    def __init__(
        self,
        load_fn: LoadFn,
        *,
        max_models: int = 4,
        max_bytes: float = math.inf,
        max_rows: int | None = None,
        queue_s: float = math.inf,
    ) -> None:
        self._load_fn = load_fn
        self._max_models = max_models
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        self._queue_s = queue_s
        self._lanes: OrderedDict[Key, Lane] = OrderedDict()
        self._loading: dict[Key, threading.Lock] = {}
        self._orders: deque[tuple[Lane, AnyTicket]] = deque()
        self._departures: deque[AnyTicket] = deque()
        self._open: dict[AnyTicket, Lane] = {}
        self._next_deadline = math.inf
        self._past_evaluations = self._past_row_evaluations = self._past_row_capacity = 0
        self._num_hits = self._num_loads = self._num_evictions = 0
        self._busy_s = self._load_s = 0.0
        self._condition = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Run the loop in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop; whoever still waits gets EngineStopped."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def draw(self, key: Key, order: DrawOrder, *, first: int = 0, deadline: float = math.inf) -> DrawTicket:
        """Queue samples `first` … `first + num_images − 1` of the stream of a seed.

        Raises ConfigError, EngineBusy, EngineStopped, and what loading raises.
        """
        lane = self._lane(key)
        try:
            model = lane.model
            settings = chosen_settings(
                model,
                start=order.start,
                num_steps=order.num_steps,
                noise_scale=order.noise_scale,
                levels=order.levels,
                compositions=order.labels,
                adjusted=order.adjusted,
            )
            self._require_room()
            cost, kernel = lane.cost(settings), sampling_kernel(model.config.chain, settings)
            ticket = DrawTicket(order, first, settings, cost, kernel, tuple(model.event_shape), deadline)
            return self._order(lane, ticket)
        except BaseException:
            self._release(lane)
            raise

    def work(self, key: Key, work_fn: WorkFn[T], *, deadline: float = math.inf) -> WorkTicket[T]:
        """Queue work on a model, in pieces between the chains' evaluations. Raises as `draw`."""
        lane = self._lane(key)
        try:
            self._require_room()
            return self._order(lane, WorkTicket(work_fn, deadline))
        except BaseException:
            self._release(lane)
            raise

    def cancel(self, ticket: AnyTicket) -> None:
        """Free its chains at the next step; its future then raises Cancelled. Too late does no harm."""
        with self._condition:
            self._departures.append(ticket)
            self._condition.notify()

    def drop(self, key: Key) -> bool:
        """Forget a model, unless it is in use; whether it is no longer there."""
        with self._condition:
            lane = self._lanes.get(key)
            if lane is not None and lane.in_flight == 0:
                self._forget(key)
            return key not in self._lanes

    def load(self) -> EngineLoad:
        """A snapshot, from any thread."""
        with self._condition:
            lanes = dict(self._lanes)
            unseen = sum(ticket.num_waiting for _, ticket in self._orders if isinstance(ticket, DrawTicket))
            past_evaluations, past_row_evaluations = self._past_evaluations, self._past_row_evaluations
            past_row_capacity = self._past_row_capacity
        return EngineLoad(
            models=list(lanes),
            num_chains=sum(lane.num_chains for lane in lanes.values()),
            num_waiting=unseen + sum(lane.num_waiting for lane in lanes.values()),
            backlog_s=sum(lane.backlog_s for lane in lanes.values()),
            num_evaluations=past_evaluations + sum(lane.num_evaluations for lane in lanes.values()),
            num_row_evaluations=past_row_evaluations + sum(lane.num_row_evaluations for lane in lanes.values()),
            num_row_capacity=past_row_capacity + sum(lane.num_row_capacity for lane in lanes.values()),
            busy_s=self._busy_s,
            model_bytes=sum(lane.size_bytes for lane in lanes.values()),
            num_model_hits=self._num_hits,
            num_model_loads=self._num_loads,
            model_load_s=self._load_s,
            num_model_evictions=self._num_evictions,
        )

    def step(self) -> bool:
        """Orders in, one turn of one model, results out; False when there was nothing to do."""
        self._take_orders()
        self._end_late()
        lane = self._next_lane()
        if lane is None:
            return False
        began_at = time.perf_counter()
        try:
            for ticket in lane.turn():
                self._release(self._open.pop(ticket))
        except Exception as error:  # the chains of this model are lost, the loop must go on for the others
            log.exception("turn_failed")
            self._fail(lane, error)
        elapsed_s = time.perf_counter() - began_at
        lane.spent_s += elapsed_s
        self._busy_s += elapsed_s
        return True

    def _run(self) -> None:
        try:
            while not self._stopping:
                if not self.step():
                    self._rest()
        except Exception:  # a mistake in the engine itself: better no answers than clients that wait for ever
            log.exception("engine_broke")
            self._stopping = True
        self._take_orders()
        for ticket in list(self._open):
            self._end(ticket, EngineStopped())

    def _rest(self) -> None:
        """Until somebody asks for something. Nothing is open then, so no deadline can pass."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopping or self._orders or self._departures)

    def _lane(self, key: Key) -> Lane:
        """The model's lane, held until `_release`; loaded in this thread if need be, once for all who ask."""
        with self._condition:
            if self._stopping:
                raise EngineStopped()
            lock = self._loading.setdefault(key, threading.Lock())
        with lock:
            with self._condition:
                lane = self._hold(key)
                self._num_hits += lane is not None
            if lane is None:
                began_at = time.perf_counter()
                loaded = Lane(self._load_fn(key), max_rows=self._max_rows)
                with self._condition:
                    self._num_loads += 1
                    self._load_s += time.perf_counter() - began_at
                    self._lanes[key] = loaded
                    lane = self._hold(key)
                    self._evict()
        assert lane is not None
        return lane

    def _hold(self, key: Key) -> Lane | None:
        lane = self._lanes.get(key)
        if lane is not None:
            lane.in_flight += 1
            self._lanes.move_to_end(key)
        return lane

    def _release(self, lane: Lane) -> None:
        with self._condition:
            lane.in_flight -= 1
            self._evict()

    def _evict(self) -> None:
        """Models in use stay, whatever the limits: dropping one would drop its requests."""
        for key in [key for key, lane in self._lanes.items() if lane.in_flight == 0]:
            size_bytes = sum(lane.size_bytes for lane in self._lanes.values())
            if len(self._lanes) <= self._max_models and size_bytes <= self._max_bytes:
                return
            self._forget(key)

    def _forget(self, key: Key) -> None:
        dropped = self._lanes.pop(key)
        self._past_evaluations += dropped.num_evaluations
        self._past_row_evaluations += dropped.num_row_evaluations
        self._past_row_capacity += dropped.num_row_capacity
        self._num_evictions += 1
        self._loading.pop(key, None)

    def _require_room(self) -> None:
        backlog_s = self.load().backlog_s
        if backlog_s > self._queue_s:
            raise EngineBusy(max(1.0, backlog_s - self._queue_s))

    def _order(self, lane: Lane, ticket: K) -> K:
        with self._condition:
            if self._stopping:
                raise EngineStopped()
            self._orders.append((lane, ticket))
            self._condition.notify()
        return ticket

    def _take_orders(self) -> None:
        with self._condition:
            orders, departures = list(self._orders), list(self._departures)
            self._orders.clear()
            self._departures.clear()
        busy = self._busy_lanes() if orders else []
        for lane, ticket in orders:
            if not lane.has_work:  # it has no claim to the time in which it asked for nothing
                lane.spent_s = max(lane.spent_s, min((other.spent_s for other in busy), default=0.0))
            lane.add(ticket)
            self._open[ticket] = lane
            self._next_deadline = min(self._next_deadline, ticket.deadline)
        for ticket in departures:
            self._end(ticket, Cancelled("the client left"))

    def _busy_lanes(self) -> list[Lane]:
        with self._condition:
            return [lane for lane in self._lanes.values() if lane.has_work]

    def _end_late(self) -> None:
        now = time.time()
        if now < self._next_deadline:
            return
        for ticket in [ticket for ticket in self._open if ticket.deadline <= now]:
            self._end(ticket, DeadlinePassed("the samplers are too busy: the request waited beyond its deadline"))
        self._next_deadline = min((ticket.deadline for ticket in self._open), default=math.inf)

    def _next_lane(self) -> Lane | None:
        """Of the models with work, the one that has had the least time."""
        return min(self._busy_lanes(), key=lambda lane: lane.spent_s, default=None)

    def _end(self, ticket: AnyTicket, error: BaseException) -> None:
        lane = self._open.pop(ticket, None)
        if lane is None:
            return  # it had ended
        lane.drop(ticket)
        ticket.fail(error)
        self._release(lane)

    def _fail(self, lane: Lane, error: Exception) -> None:
        lane.reset()
        for ticket in [ticket for ticket, owner in self._open.items() if owner is lane]:
            if ticket.is_open:
                self._end(ticket, error)
            else:
                self._release(self._open.pop(ticket))

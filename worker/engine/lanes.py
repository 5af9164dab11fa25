"""One model in the engine: its chains, the tickets that wait for them, and the rate at which it computes."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from typing import Any

import numpy as np
import torch

from model.chains.descent import Arrivals, Chain, Descents, Rows, Step, evaluations_per_sample
from model.composition import in_turn
from model.config import SamplingConfig
from model.energies.energy_model import EnergyModel
from model.networks.registry import useful_threads
from worker.engine.batching import MAX_ROWS, measured_batch
from worker.engine.tickets import AnyTicket, DrawTicket, WorkTicket

_SMOOTHING = 0.05
"""The weight of one step in the running mean of the rate."""


class Lane:
    """The chains of one frozen model, and their queue. Only the engine's thread uses it."""

    def __init__(self, model: EnergyModel, *, max_rows: int | None = None) -> None:
        self.model = model
        self.size_bytes = model.memory_bytes
        """bytes of the weights and of what is kept of them, as counted when a ticket last ended"""
        self.in_flight = 0
        """the number of tickets that have not ended; the engine counts them"""
        self.spent_s = 0.0
        """the seconds that the model has computed, by which models take turns"""
        self.rate = 0.0
        """the measured row evaluations a second of a full batch"""
        self.num_evaluations = 0
        self.num_row_evaluations = 0
        self.num_row_capacity = 0
        self._max_rows = max_rows
        self._descents: Descents | None = None
        self._chains: list[tuple[DrawTicket, int]] = []
        self._waiting: deque[DrawTicket] = deque()
        self._works: deque[WorkTicket[Any]] = deque()
        self._pending = 0
        self._num_waiting = 0
        self._ended: list[AnyTicket] = []
        self._steps: deque[torch.cuda.Event] = deque()
        self._works_turn = False
        self._frozen = contextlib.ExitStack()
        self._frozen.enter_context(model.frozen())

    @property
    def has_work(self) -> bool:
        """Whether a turn would do anything."""
        return bool(self._chains or self._waiting or self._works)

    @property
    def num_chains(self) -> int:
        """The number of chains that are running."""
        return len(self._chains)

    @property
    def num_waiting(self) -> int:
        """The number of chains that have not begun."""
        return self._num_waiting

    @property
    def backlog_s(self) -> float:
        """The seconds that everything accepted so far takes at the rate of a full batch."""
        # Chains that run are taken to be half-way, so the estimate may have run below 0 when they are not.
        return max(0, self._pending) / self.rate if self.rate else 0.0

    def cost(self, settings: SamplingConfig) -> int:
        """The gradient evaluations that a chain with these settings takes."""
        return evaluations_per_sample(self.model.config, settings)

    def add(self, ticket: AnyTicket) -> None:
        """Put a ticket into the queue."""
        if isinstance(ticket, WorkTicket):
            self._works.append(ticket)
        else:
            self._waiting.append(ticket)
            self._recount()

    def drop(self, ticket: AnyTicket) -> None:
        """Forget a ticket: its chains are not evaluated again."""
        if isinstance(ticket, WorkTicket):
            ticket.close()
            self._works = deque(one for one in self._works if one is not ticket)
            return
        self._waiting = deque(one for one in self._waiting if one is not ticket)
        rows = [row for row, (owner, _) in enumerate(self._chains) if owner is ticket]
        self._remove(np.array(rows, np.int64))
        self._recount()

    def reset(self) -> None:
        """Forget all chains and other work, after an error that may have left them half advanced."""
        if self._descents is not None:
            self._max_rows = self._descents.capacity
        for work in self._works:
            work.close()
        self._chains, self._waiting, self._works, self._descents = [], deque(), deque(), None
        self._recount()

    def turn(self) -> list[AnyTicket]:
        """Do one gradient evaluation of all chains, or a piece of other work; the tickets that ended with it."""
        self._ended = []
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        if self._descents is None:
            self._descents = Descents(self.model, self._max_rows or self._measured_rows())
        chains = bool(self._chains or self._waiting)
        self._works_turn = bool(self._works) and not (chains and self._works_turn)
        if self._works_turn:
            self._work()
        elif chains:
            self._evaluate(self._descents)
        if self._ended:
            self.size_bytes = self.model.memory_bytes
        return self._ended

    @property
    def _threads(self) -> int:
        """The CPU threads that a half-full batch keeps busy. With fewer rows, they would only wait for each other."""
        rows = (self._max_rows or MAX_ROWS) // 2
        useful = useful_threads(self.model.config.network, tuple(self.model.event_shape), rows)
        return min(len(os.sched_getaffinity(0)), useful)

    def _work(self) -> None:
        ticket = self._works.popleft()
        ticket.advance(self.model)
        (self._works if ticket.is_open else self._ended).append(ticket)

    def _evaluate(self, descents: Descents) -> None:
        self._admit(descents)
        began_at = time.perf_counter()
        rows = descents.num_rows
        step = descents.step()
        self._pace()
        self._pending -= rows
        self.num_evaluations += 1
        self.num_row_evaluations += rows
        self.num_row_capacity += descents.capacity
        self._observe(rows, time.perf_counter() - began_at)
        self._hand_out(step)

    def _admit(self, descents: Descents) -> None:
        chains = self._taken(descents.capacity - descents.num_rows)
        if chains:
            self._tell(descents.add(chains))

    def _taken(self, room: int) -> list[Chain]:
        """Waiting chains for the free rows: one of every request in turn, so that a small request is not held up."""
        chains: list[Chain] = []
        while self._waiting and len(chains) < room:
            ticket = self._waiting[0]
            ticket.start()
            image = ticket.num_started
            ticket.num_started += 1
            self._num_waiting -= 1
            self._chains.append((ticket, image))
            index = ticket.first + image
            chains.append(Chain(ticket.order.seed, index, ticket.settings, in_turn(ticket.order.labels, index)))
            if ticket.num_waiting:
                self._waiting.rotate(-1)
            else:
                self._waiting.popleft()
        return chains

    def _tell(self, arrived: list[Arrivals]) -> None:
        """Hand the levels that chains have reached to the tickets that want them."""
        for arrivals in arrived:
            for row, level, x in zip(arrivals.rows.tolist(), arrivals.levels.tolist(), arrivals.x, strict=True):
                ticket, image = self._chains[row]
                if ticket.wants(level):
                    ticket.reach(image, level, x)

    def _hand_out(self, step: Step) -> None:
        self._tell(step.arrivals)
        if len(step.ended):
            samples = step.samples.cpu()
            ended = [self._chains[row] for row in step.ended]
            self._remove(np.sort(step.ended))
            for (ticket, image), x in zip(ended, samples, strict=True):
                ticket.end_chain(image, x)
                if not ticket.is_open:
                    self._ended.append(ticket)

    def _pace(self) -> None:
        """Let a device that computes beside us be one step behind, so that it never waits, but no more than one."""
        if self.model.step_size.device.type == "cuda":
            self._steps.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
            self._steps[-1].record()
            if len(self._steps) > 1:
                self._steps.popleft().synchronize()

    def _remove(self, rows: Rows) -> None:
        if self._descents is None or not len(rows):
            return
        for source, target in self._descents.remove(rows):
            self._chains[target] = self._chains[source]
        del self._chains[self._descents.num_rows :]

    def _recount(self) -> None:
        """Count anew what is left to evaluate; running chains are taken to be half-way."""
        self._num_waiting = sum(ticket.num_waiting for ticket in self._waiting)
        waiting = sum(ticket.cost * ticket.num_waiting for ticket in self._waiting)
        self._pending = waiting + sum(ticket.cost for ticket, _ in self._chains) // 2

    def _observe(self, rows: int, elapsed_s: float) -> None:
        """Take a step into the rate of a full batch, of which a batch less than half full says nothing."""
        assert self._descents is not None
        if 2 * rows >= self._descents.capacity:
            rate = rows / elapsed_s
            self.rate += _SMOOTHING * (rate - self.rate) if self.rate else rate

    def _measured_rows(self) -> int:
        rows, self.rate = measured_batch(self.model)
        return rows

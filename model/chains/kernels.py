"""Markov-chain kernels over batches of independent chains, and the one place where each of them is written.

A step is a flight from a state: `launch` says where the target is evaluated first, `leap` where next, and `land` makes
the next state of the last evaluation. `step` does all of it for chains that go together; `model.chains.descent` calls
the same functions for rows that are each at their own point of their own step. A new kernel is one class, and one entry
of `KERNELS`.

Notation: `step_size` (B,) is the standard deviation s of the injected noise, in the units of the position; ε the noise.
Langevin (Roberts & Tweedie 1996): y' = y − (s²/2) ∇E(y) + s ε. MALA accepts y' with the Metropolis-Hastings ratio.
HMC (Duane et al. 1987): leapfrog with unit mass. A proposal of non-finite energy is a rejection, decided here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import KernelKind
from model.energies.conditional import squared_norm
from model.energies.energy import EnergyFn, energy_and_score
from model.noise import NoiseSource
from model.schedule import expand


class State(NamedTuple):
    """A batch of chains. Energy and score belong to the position, and are not numbers where no kernel asks for them."""

    position: Tensor
    """(B, *event)"""
    energy: Tensor
    """(B,) nats"""
    score: Tensor
    """(B, *event)"""


class Flight(NamedTuple):
    """A step under way."""

    origin: State
    """the state it left"""
    point: Tensor
    """(B, *event) where the target is evaluated next"""
    momentum: Tensor
    """(B, *event) HMC's, half a leap on; otherwise the noise ε of the step"""
    kinetic: Tensor
    """(B,) |ε|²/2 of the noise that the step began with; 0 where nothing is decided"""


class Info(NamedTuple):
    """What one step did."""

    acceptance_probability: Tensor
    """(B,) in [0, 1]"""
    accepted: Tensor
    """(B,) bool"""


def evaluate(position: Tensor, target: EnergyFn) -> State:
    """The state at `position` (B, *event): one gradient evaluation."""
    return State(position, *energy_and_score(target, position))


class Kernel(ABC):
    """A transition of Markov chains. One that is not `Adjusted` takes every step, whose end it does not evaluate."""

    num_leaps: int
    """The gradient evaluations of a step: one, unless the kernel is adjusted and leaps on."""

    def num_evaluations(self, num_steps: int) -> int:
        """Gradient evaluations of a chain of at least one step."""
        return num_steps * self.num_leaps

    @abstractmethod
    def init(self, position: Tensor, target: EnergyFn, /) -> State:
        """The state of chains that start at `position` (B, *event)."""

    @abstractmethod
    def step(self, state: State, target: EnergyFn, step_size: Tensor, noise: NoiseSource) -> tuple[State, Info]:
        """One step of all chains: `num_leaps` gradient evaluations."""

    @abstractmethod
    def launch(self, state: State, step_size: Tensor, epsilon: Tensor) -> Flight:
        """Leave a state of known score with the noise ε (B, *event)."""


@dataclass(frozen=True)
class Langevin(Kernel):
    """Unadjusted Langevin: a step evaluates where it begins, so that none is left over at the end of the chain."""

    num_leaps: int = 1

    def init(self, position: Tensor, _target: EnergyFn, /) -> State:
        return State(position, position.new_full((len(position),), torch.nan), torch.full_like(position, torch.nan))

    def step(self, state: State, target: EnergyFn, step_size: Tensor, noise: NoiseSource) -> tuple[State, Info]:
        here = evaluate(state.position, target)
        flight = self.launch(here, step_size, noise.normal(here.position))
        ones = torch.ones_like(here.energy)
        return state._replace(position=flight.point), Info(ones, ones > 0)

    def launch(self, state: State, step_size: Tensor, epsilon: Tensor) -> Flight:
        point = langevin_move(state.position, state.score, step_size, epsilon)
        return Flight(state, point, epsilon, torch.zeros_like(state.energy))


class Adjusted(Kernel):
    """A kernel that decides at the end of a step whether to take it, by the Metropolis rule, and so leaves exp(−target)
    invariant. A chain evaluates where it starts, and where every step ends."""

    def num_evaluations(self, num_steps: int) -> int:
        return 1 + super().num_evaluations(num_steps)

    def init(self, position: Tensor, target: EnergyFn, /) -> State:
        return evaluate(position, target)

    def step(self, state: State, target: EnergyFn, step_size: Tensor, noise: NoiseSource) -> tuple[State, Info]:
        flight = self.launch(state, step_size, noise.normal(state.position))
        for _ in range(self.num_leaps - 1):
            flight = self.leap(flight, evaluate(flight.point, target), step_size)
        end = evaluate(flight.point, target)
        return self.land(flight, end, step_size, noise.uniform(end.energy))

    def leap(self, flight: Flight, here: State, step_size: Tensor) -> Flight:
        """Go on from `here`, the flight's point evaluated. Only kernels of several leaps are asked to."""
        raise NotImplementedError

    def land(self, flight: Flight, end: State, step_size: Tensor, uniform: Tensor) -> tuple[State, Info]:
        """The state after a flight to `end`, its last point evaluated; `uniform` (B,) decides whether it is that."""
        state, back = flight.origin, squared_norm(self.noise_back(flight, end, step_size)) / 2
        return metropolis_choice(state, end, state.energy - end.energy + (flight.kinetic - back), uniform)

    @abstractmethod
    def noise_back(self, flight: Flight, end: State, step_size: Tensor) -> Tensor:
        """The noise (B, *event), up to its sign, that would lead from `end` back to the flight's origin."""


@dataclass(frozen=True)
class MALA(Adjusted):
    """The Metropolis-adjusted Langevin algorithm."""

    num_leaps: int = 1

    def launch(self, state: State, step_size: Tensor, epsilon: Tensor) -> Flight:
        point = langevin_move(state.position, state.score, step_size, epsilon)
        return Flight(state, point, epsilon, squared_norm(epsilon) / 2)

    def noise_back(self, flight: Flight, end: State, step_size: Tensor) -> Tensor:
        # Standardised, so that the ratio of the two proposals' densities is accurate for small steps too.
        s = expand(step_size, end.position)
        return (flight.origin.position - end.position) / s - 0.5 * s * end.score


@dataclass(frozen=True)
class HMC(Adjusted):
    """Hamiltonian Monte Carlo by `num_leaps` leapfrogs a step; one of them is MALA, to rounding."""

    num_leaps: int = 5

    def launch(self, state: State, step_size: Tensor, epsilon: Tensor) -> Flight:
        return self._leapt(Flight(state, state.position, epsilon, squared_norm(epsilon) / 2), state, step_size)

    def leap(self, flight: Flight, here: State, step_size: Tensor) -> Flight:
        return self._leapt(flight._replace(momentum=self.noise_back(flight, here, step_size)), here, step_size)

    def noise_back(self, flight: Flight, end: State, step_size: Tensor) -> Tensor:
        return flight.momentum + 0.5 * expand(step_size, end.position) * end.score

    def _leapt(self, flight: Flight, here: State, step_size: Tensor) -> Flight:
        """On from `here` with the flight's momentum there."""
        s = expand(step_size, here.position)
        half = flight.momentum + 0.5 * s * here.score
        return flight._replace(point=here.position + s * half, momentum=half)


KERNELS: Mapping[KernelKind, Kernel] = MappingProxyType({"langevin": Langevin(), "mala": MALA(), "hmc": HMC()})
"""The kernels by the names that configurations give them."""


def langevin_move(position: Tensor, score: Tensor, step_size: Tensor, epsilon: Tensor) -> Tensor:
    """y + (s²/2) score + s ε."""
    s = expand(step_size, position)
    return position + 0.5 * s**2 * score + s * epsilon


def metropolis_choice(state: State, proposal: State, log_ratio: Tensor, uniform: Tensor) -> tuple[State, Info]:
    """The proposal where `uniform` (B,) < exp(log_ratio), else the state; a ratio that is not a number rejects."""
    probability = torch.nan_to_num(log_ratio, nan=-torch.inf).clamp(max=0).exp()
    accepted = uniform < probability
    chosen = State(*(choose(accepted, new, old) for new, old in zip(proposal, state, strict=True)))
    return chosen, Info(probability, accepted)


def choose(first: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Rows of `one` where `first` (B,) is true, of `other` elsewhere."""
    return torch.where(first.reshape(-1, *[1] * (one.dim() - 1)), one, other)


def adapt_step_size(step_size: Tensor, acceptance: Tensor, *, target: float, rate: float = 0.05) -> Tensor:
    """Robbins-Monro on the logarithm: log s ← log s + rate (acceptance − target) (Andrieu & Thoms 2008)."""
    return step_size * torch.exp(rate * (acceptance.to(step_size) - target))

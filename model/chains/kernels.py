"""Markov-chain kernels over batches of independent chains. Each kernel is written here and nowhere else.

A step is a flight from a state: `launch` says where the target is evaluated first, `leap` says where it is evaluated
next, and `land` makes the next state from the last evaluation. `step` does all of this for chains that go together;
`model.chains.descent` calls the same functions for rows that are each at their own point of their own step. A new
kernel is one class and one entry of `KERNELS`.

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
    """The state of a batch of chains. Energy and score are those at the position, or NaN if the kernel needs none."""

    position: Tensor
    """(B, *event)"""
    energy: Tensor
    """(B,) nats"""
    score: Tensor
    """(B, *event)"""


class Flight(NamedTuple):
    """A step that is under way, for a batch of chains."""

    origin: State
    """the state that the step left"""
    point: Tensor
    """(B, *event) position at which the target is evaluated next"""
    momentum: Tensor
    """(B, *event) momentum of HMC, half a leap on; for other kernels the noise ε of the step"""
    kinetic: Tensor
    """(B,) |ε|²/2 of the noise that the step began with; 0 for kernels that accept every step"""


class Info(NamedTuple):
    """What one step did to each chain."""

    acceptance_probability: Tensor
    """(B,) in [0, 1]"""
    accepted: Tensor
    """(B,) bool"""


def evaluate(position: Tensor, target: EnergyFn) -> State:
    """Return the state at `position` (B, *event). This takes one gradient evaluation."""
    return State(position, *energy_and_score(target, position))


class Kernel(ABC):
    """A transition of Markov chains. A kernel that is not `Adjusted` takes every step and does not evaluate its end."""

    num_leaps: int
    """The number of gradient evaluations that a step takes: one, unless the kernel is adjusted and leaps on."""

    def num_evaluations(self, num_steps: int) -> int:
        """Return the number of gradient evaluations that a chain of `num_steps`, at least one, takes."""
        return num_steps * self.num_leaps

    @abstractmethod
    def init(self, position: Tensor, target: EnergyFn, /) -> State:
        """Return the state of chains that start at `position` (B, *event)."""

    @abstractmethod
    def step(self, state: State, target: EnergyFn, step_size: Tensor, noise: NoiseSource) -> tuple[State, Info]:
        """Take one step of all chains, which takes `num_leaps` gradient evaluations."""

    @abstractmethod
    def launch(self, state: State, step_size: Tensor, epsilon: Tensor) -> Flight:
        """Begin a step from a state whose score is known, with the noise ε (B, *event)."""


@dataclass(frozen=True)
class Langevin(Kernel):
    """Unadjusted Langevin. A step evaluates where it begins, so that no evaluation is left over when the chain ends."""

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
    """A kernel that decides by the Metropolis rule, at the end of a step, whether to take it.

    It therefore leaves exp(−target) invariant. A chain evaluates the target where it starts and where every step ends.
    """

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
        """Continue the flight from `here`, its point evaluated. Only kernels of several leaps have to define this."""
        raise NotImplementedError

    def land(self, flight: Flight, end: State, step_size: Tensor, uniform: Tensor) -> tuple[State, Info]:
        """Return the state after a flight to `end`, its last point evaluated; `uniform` (B,) decides on acceptance."""
        state, back = flight.origin, squared_norm(self.noise_back(flight, end, step_size)) / 2
        return metropolis_choice(state, end, state.energy - end.energy + (flight.kinetic - back), uniform)

    @abstractmethod
    def noise_back(self, flight: Flight, end: State, step_size: Tensor) -> Tensor:
        """Return the noise (B, *event), up to its sign, that would lead from `end` back to the flight's origin."""


@dataclass(frozen=True)
class MALA(Adjusted):
    """The Metropolis-adjusted Langevin algorithm."""

    num_leaps: int = 1

    def launch(self, state: State, step_size: Tensor, epsilon: Tensor) -> Flight:
        point = langevin_move(state.position, state.score, step_size, epsilon)
        return Flight(state, point, epsilon, squared_norm(epsilon) / 2)

    def noise_back(self, flight: Flight, end: State, step_size: Tensor) -> Tensor:
        # The noise is standardised, so that the ratio of the two proposals' densities is accurate for small steps too.
        s = expand(step_size, end.position)
        return (flight.origin.position - end.position) / s - 0.5 * s * end.score


@dataclass(frozen=True)
class HMC(Adjusted):
    """Hamiltonian Monte Carlo with `num_leaps` leapfrogs a step; with one it is MALA, to rounding."""

    num_leaps: int = 5

    def launch(self, state: State, step_size: Tensor, epsilon: Tensor) -> Flight:
        return self._leapt(Flight(state, state.position, epsilon, squared_norm(epsilon) / 2), state, step_size)

    def leap(self, flight: Flight, here: State, step_size: Tensor) -> Flight:
        return self._leapt(flight._replace(momentum=self.noise_back(flight, here, step_size)), here, step_size)

    def noise_back(self, flight: Flight, end: State, step_size: Tensor) -> Tensor:
        return flight.momentum + 0.5 * expand(step_size, end.position) * end.score

    def _leapt(self, flight: Flight, here: State, step_size: Tensor) -> Flight:
        """Leap from `here`, where the flight has its momentum: half a momentum step, then a step of the position."""
        s = expand(step_size, here.position)
        half = flight.momentum + 0.5 * s * here.score
        return flight._replace(point=here.position + s * half, momentum=half)


KERNELS: Mapping[KernelKind, Kernel] = MappingProxyType({"langevin": Langevin(), "mala": MALA(), "hmc": HMC()})
"""The kernels by the names that configurations give them."""


def langevin_move(position: Tensor, score: Tensor, step_size: Tensor, epsilon: Tensor) -> Tensor:
    """Return y + (s²/2) score + s ε for y = `position` (B, *event) and s = `step_size` (B,)."""
    s = expand(step_size, position)
    return position + 0.5 * s**2 * score + s * epsilon


def metropolis_choice(state: State, proposal: State, log_ratio: Tensor, uniform: Tensor) -> tuple[State, Info]:
    """Return the proposal where `uniform` (B,) < exp(`log_ratio`) (B,), else the state; a NaN ratio is a rejection."""
    probability = torch.nan_to_num(log_ratio, nan=-torch.inf).clamp(max=0).exp()
    accepted = uniform < probability
    chosen = State(*(choose(accepted, new, old) for new, old in zip(proposal, state, strict=True)))
    return chosen, Info(probability, accepted)


def choose(first: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return rows of `one` where `first` (B,) is true, and rows of `other` elsewhere."""
    return torch.where(first.reshape(-1, *[1] * (one.dim() - 1)), one, other)


def adapt_step_size(step_size: Tensor, acceptance: Tensor, *, target: float, rate: float = 0.05) -> Tensor:
    """Adapt a step size by Robbins-Monro on its logarithm: log s ← log s + rate (acceptance − target).

    Source: Andrieu & Thoms 2008.
    """
    return step_size * torch.exp(rate * (acceptance.to(step_size) - target))

"""The class of data by the energies of a conditional model, and whether they are like the model's data at all.

The class is log p(k | x) = E(x) − E(x, k) (`model.energies.labels`). A classifier names a class for anything, so that
the energy E_0(x) of whatever class is judged too: data whose energy is higher than that of nearly all held-out data are
like none of the classes. Energies are enough for this, since log Z is the same for all data.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.conditions import At
from model.energies.energy_model import EnergyModel
from model.energies.labels import chosen
from model.errors import ConfigError
from model.schedule import expand

_CHUNK = 1024  # events that are evaluated at once


@dataclass(frozen=True)
class Classification:
    """What a model says of the class of data."""

    log_probabilities: Tensor
    """(N, K) log p(k | x), in nats"""
    energy: Tensor
    """(N,) E(x) whatever the class, at the level that was asked, in nats"""


def classify(model: EnergyModel, x_data: Tensor, *, noise_std: float = 0.0) -> Tensor:
    """Return log p(k | x) (N, K), in nats, of `x_data` (N, *event) in the data's units, for each class k of the model.

    `noise_std` is the standard deviation of the Gaussian noise that the data are known to hold, in scaled units
    (image values, or each coordinate's own standard deviation). The level whose noise comes nearest to it is asked,
    level 0 for data without noise. Raises ConfigError for a model that is not conditional.
    """
    pieces = classified(model, x_data, noise_std=noise_std)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            found: Classification = end.value
            return found.log_probabilities


def classified(model: EnergyModel, x_data: Tensor, *, noise_std: float = 0.0) -> Generator[None, None, Classification]:
    """Return what `classify` says of the data, with their energies. It can be interrupted at every piece."""
    if not model.class_names:
        raise ConfigError("this model was not trained with conditional, so that it knows no classes")
    noise = (model.schedule.sigma_bar / model.schedule.alpha_bar)[:-1]
    t = int((noise - noise_std).abs().argmin())
    log_probabilities, energies = [], []
    for chunk in torch.split(x_data.to(model.step_size), _CHUNK):
        at = At.same(t, chunk)
        scale = model.schedule.scale[at.level] * model.schedule.alpha_bar[at.level]
        with torch.no_grad():
            base_energy, correction = model.parts(expand(scale, chunk) * model.space.encode(chunk), at)
        log_probabilities.append(torch.log_softmax(correction, 1))
        energies.append(base_energy - chosen(correction, at))
        yield
    return Classification(torch.cat(log_probabilities), torch.cat(energies))


def share_less_likely(model: EnergyModel, energy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Return what share (N,) of held-out data has a higher energy at level 0 than `energy` (N,) of `classified` has.

    None if the model's checkpoint does not say how its held-out data score.
    """
    held_out = np.array(model.held_out_energies)
    if not len(held_out):
        return None
    found: npt.NDArray[np.float64] = 1 - np.interp(energy, held_out, np.linspace(0, 1, len(held_out)))
    return found

"""The class of data by the energies of a conditional model: log p(k | x) = E(x) − E(x, k) (`model.energies.labels`)."""

from __future__ import annotations

import torch
from torch import Tensor

from model.conditions import At
from model.energies.energy_model import EnergyModel
from model.errors import ConfigError
from model.schedule import expand

_CHUNK = 4096  # events that are evaluated at once


def classify(model: EnergyModel, x_data: Tensor, *, noise_std: float = 0.0) -> Tensor:
    """Return log p(k | x) (N, K), in nats, of `x_data` (N, *event) in the data's units, for each class k of the model.

    `noise_std` is the standard deviation of the Gaussian noise that the data are known to hold, in scaled units
    (image values, or each coordinate's own standard deviation). The level whose noise comes nearest to it is asked,
    level 0 for data without noise. Raises ConfigError for a model that is not conditional.
    """
    if not model.class_names:
        raise ConfigError("this model was not trained with conditional, so that it knows no classes")
    noise = (model.schedule.sigma_bar / model.schedule.alpha_bar)[:-1]
    t = int((noise - noise_std).abs().argmin())
    with torch.no_grad():
        return torch.cat([_log_probabilities(model, chunk, t) for chunk in torch.split(x_data, _CHUNK)])


def _log_probabilities(model: EnergyModel, x_data: Tensor, t: int) -> Tensor:
    at = At.same(t, x_data)
    scale = model.schedule.scale[at.level] * model.schedule.alpha_bar[at.level]
    _, correction = model.parts(expand(scale, x_data) * model.space.encode(x_data), at)
    return torch.log_softmax(correction, 1)

"""The loss of a training step, as a function of rows of its batch.

In the phase of score matching it is one of the losses on the energy's gradient. Afterwards it is the contrastive loss
between y⁺ and the y⁻ that a chain draws on p(y | x_{t+1}) under frozen weights (DRL algorithm 1).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.chains.sampling import draw_conditional
from model.conditions import At
from model.energies.conditional import squared_norm
from model.energies.energy_model import EnergyModel
from model.events import Phase
from model.noise import SharedNoise
from model.rows import Rows
from model.schedule import expand
from model.training.losses import (
    contrastive_loss,
    dual_score_matching_loss,
    energy_penalty,
    marginal_score_matching_loss,
    noise_contrastive_loss,
    recovery_score_matching_loss,
)

_CONTRAST_NATS = 0.8
"""How much lower the density of the noise that data are told from is at its centre than that of the base, in nats. The
noise then reaches a little further than the data (1.5 times in two dimensions), yet stays near enough to them in many
dimensions to say something about them."""


class PartialLoss(NamedTuple):
    """The part of a batch's loss that some of its rows contribute."""

    loss: Tensor
    """() what the rows add to the mean over the batch"""
    levels: Tensor | None
    """(4, B) E_t(y⁺), E_t(y⁻), displacement, acceptance rate of each row, without gradient; None in score matching"""


class Objective(nn.Module):
    """A model's loss, which is a mean over the rows of a batch. As a module, DistributedDataParallel can wrap it."""

    def __init__(self, model: EnergyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Rows, x_data: Tensor, level: Tensor, noise: SharedNoise, phase: Phase) -> PartialLoss:
        """Return what `rows` contribute to the loss of the batch.

        `x_data` (B, *event), `level` (B,) and `noise` are those of the whole batch.
        """
        x, at, own = rows.of(x_data), At(rows.of(level)), noise.at(rows)
        if phase == "score_matching":
            return PartialLoss(_mean(score_matching_losses(self.model, x, at, own), rows), None)
        losses, levels = recovery_losses(self.model, x, at, own)
        loss = _mean(losses, rows)
        matching = self.model.config.score_matching
        if matching.recovery_weight > 0:
            stride = max(1, len(x_data) // matching.batch_size)
            some = rows.every(stride)
            if len(some):
                x, at = some.of(x_data[::stride]), At(some.of(level[::stride]))
                losses = score_matching_losses(self.model, x, at, own.at(some))
                loss = loss + matching.recovery_weight * _mean(losses, some)
        return PartialLoss(loss, levels)


def _mean(losses: Tensor, rows: Rows) -> Tensor:
    """Return what the losses (B,) of some rows add to the mean over the batch that the rows are part of."""
    return rows.share * losses.mean()


def stratified_levels(num_levels: int, x_data: Tensor, noise: SharedNoise) -> Tensor:
    """Draw levels (B,), each uniform on 0…T−1, spread evenly over the batch to lower the gradient's variance."""
    return (noise.spread(x_data) * num_levels).long().clamp(max=num_levels - 1)


def score_matching_losses(model: EnergyModel, x_data: Tensor, at: At, noise: SharedNoise) -> Tensor:
    """Return for every row (B,) the score-matching loss that the model's configuration names."""
    schedule, level, epsilon = model.schedule, at.level, noise.normal(x_data)
    if model.config.score_matching.form == "dual":
        at = at.on(_stratified_log_snr(model, x_data, noise))
        losses = dual_score_matching_loss(model.continuous_energy, x_data, at, epsilon)
        if (weight := model.config.score_matching.noise_contrast) > 0:
            losses = losses + weight * _noise_contrast(model, x_data, at, epsilon, noise)
        return losses
    scale = schedule.scale[level]
    if model.config.score_matching.form == "marginal":
        y = expand(scale, x_data) * schedule.diffuse(x_data, level, epsilon)
        return marginal_score_matching_loss(
            model.energy, y, epsilon, at, scale * schedule.sigma_bar[level], weigh_fn=model.weigh_residual
        )
    x, x_next = schedule.diffuse_pair(x_data, level, epsilon, noise.normal(x_data))
    return recovery_score_matching_loss(model.energy, expand(scale, x) * x, x_next, at, schedule.sigma[level + 1])


def recovery_losses(model: EnergyModel, x_data: Tensor, at: At, noise: SharedNoise) -> tuple[Tensor, Tensor]:
    """Return the contrastive loss of every pair (B,), and the `PartialLoss.levels` of the pairs."""
    config, chain, schedule, level = model.config, model.config.chain, model.schedule, at.level
    if config.shared_noise:
        x, x_next = schedule.diffuse_together(x_data, level, noise.normal(x_data))
    else:
        x, x_next = schedule.diffuse_pair(x_data, level, noise.normal(x_data), noise.normal(x_data))
    y_positive = expand(schedule.scale[level], x) * x
    with model.frozen():
        draw = draw_conditional(model, x_next, at, noise, num_steps=chain.num_steps, start=chain.start)
    energy = model.energy(torch.cat([y_positive, draw.y]), At.joined([at, at]))
    positive, negative = energy.chunk(2)
    displacement = (squared_norm(draw.y - x_next) / x[0].numel()).sqrt()
    levels = torch.stack([positive.detach(), negative.detach(), displacement, draw.acceptance])
    loss_weight = model.loss_weight[level]
    losses = contrastive_loss(positive, negative, loss_weight)
    if config.energy_penalty > 0:
        losses = losses + config.energy_penalty * energy_penalty(positive, negative, loss_weight)
    return losses, levels


def _noise_contrast(model: EnergyModel, x_data: Tensor, at: At, epsilon: Tensor, noise: SharedNoise) -> Tensor:
    assert model.base is not None
    signal, spread = (expand(torch.sigmoid(sign * at.level).sqrt(), x_data) for sign in (1, -1))
    x = signal * x_data + spread * epsilon
    factor = math.exp(_CONTRAST_NATS / x_data[0].numel())
    other, noise_energy = model.base.widened(at.level, x_data, noise, factor)
    energy = model.continuous_energy(torch.cat([x, other]), At.joined([at, at]))
    ours, theirs = energy.chunk(2)
    return noise_contrastive_loss(noise_energy(x) - ours, noise_energy(other) - theirs)


def _stratified_log_snr(model: EnergyModel, x_data: Tensor, noise: SharedNoise) -> Tensor:
    """Draw log-SNRs (B,) between those of the top level and level 0, with density ∝ (λ − min)^tilt, spread evenly."""
    high, low = model.log_snr[0], model.log_snr[-1]
    return low + (high - low) * noise.spread(x_data) ** (1 / (1 + model.config.score_matching.low_noise_tilt))

"""The loss of a training step, as a function of rows of its batch.

In the phase of score matching it is one of the losses on the energy's gradient. Afterwards it is the contrastive loss
between y⁺ and the y⁻ that a chain draws on p(y | x_{t+1}) under frozen weights (DRL algorithm 1).

With labels, all these are losses of E(x, k) at every row's own label, which say little about how the classes compare;
−log p(k | x_t) is added to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.chains.sampling import draw_conditional
from model.conditions import At
from model.energies.conditional import squared_norm
from model.energies.energy_model import EnergyModel
from model.energies.labels import chosen
from model.events import Phase
from model.noise import SharedNoise
from model.rows import Rows
from model.schedule import expand
from model.training.losses import (
    classification_loss,
    contrastive_loss,
    dual_score_matching_loss,
    energy_penalty,
    level_classification_loss,
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

    def forward(self, rows: Rows, x_data: Tensor, at: At, noise: SharedNoise, phase: Phase) -> PartialLoss:
        """Return what `rows` contribute to the loss of the batch.

        `x_data` (B, *event), its conditions `at` and `noise` are those of the whole batch.
        """
        x, here, own = rows.of(x_data), at.map(rows.of), noise.at(rows)
        if phase == "score_matching":
            return PartialLoss(_mean(score_matching_losses(self.model, x, here, own), rows), None)
        losses, levels = recovery_losses(self.model, x, here, own)
        loss = _mean(losses, rows)
        matching = self.model.config.score_matching
        if matching.recovery_weight > 0:
            stride = max(1, len(x_data) // matching.batch_size)
            some = rows.every(stride)
            if len(some):
                x, here = some.of(x_data[::stride]), at[::stride].map(some.of)
                losses = score_matching_losses(self.model, x, here, own.at(some))
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
        at, energy = at.on(_stratified_log_snr(model, x_data, noise)), _Energy(model.continuous_parts)
        losses = _with_labels(model, dual_score_matching_loss(energy, x_data, at, epsilon), energy.correction, at)
        if (weight := model.config.score_matching.noise_contrast) > 0:
            losses = losses + weight * _noise_contrast(model, x_data, at, epsilon, noise)
        return losses
    scale, energy = schedule.scale[level], _Energy(model.parts)
    if model.config.score_matching.form == "marginal":
        x = schedule.diffuse(x_data, level, epsilon)
        y = expand(scale, x) * x
        losses = marginal_score_matching_loss(
            energy, y, epsilon, at, scale * schedule.sigma_bar[level], weigh_fn=model.weigh_residual
        )
        if (weight := model.config.score_matching.level_classification_weight) > 0:
            losses = losses + weight * _level_classification(model, x, at, energy.value, noise)
        return _with_labels(model, losses, energy.correction, at)
    x, x_next = schedule.diffuse_pair(x_data, level, epsilon, noise.normal(x_data))
    y = expand(scale, x) * x
    losses = recovery_score_matching_loss(energy, y, x_next, at, schedule.sigma[level + 1])
    if at.label is not None:
        energy(y, at)  # the loss asked for the energy at x_next, of which E_t knows no label
    return _with_labels(model, losses, energy.correction, at)


class _Energy:
    """An energy function that keeps what its last call found, so that further losses of it take no evaluation."""

    correction: Tensor
    value: Tensor

    def __init__(self, parts_fn: Callable[[Tensor, At], tuple[Tensor, Tensor]]) -> None:
        self._parts_fn = parts_fn

    def __call__(self, x: Tensor, at: At) -> Tensor:
        base_energy, self.correction = self._parts_fn(x, at)
        self.value = base_energy - chosen(self.correction, at)
        return self.value


def _with_labels(model: EnergyModel, losses: Tensor, correction: Tensor, at: At) -> Tensor:
    if at.label is None:
        return losses
    return losses + model.config.classification_weight * classification_loss(correction, at.label)


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
    energy = _Energy(model.parts)
    positive, negative = energy(torch.cat([y_positive, draw.y]), At.joined([at, at])).chunk(2)
    displacement = (squared_norm(draw.y - x_next) / x[0].numel()).sqrt()
    levels = torch.stack([positive.detach(), negative.detach(), displacement, draw.acceptance])
    loss_weight = model.loss_weight[level]
    losses = contrastive_loss(positive, negative, loss_weight)
    if config.energy_penalty > 0:
        losses = losses + config.energy_penalty * energy_penalty(positive, negative, loss_weight)
    return _with_labels(model, losses, energy.correction[: len(x_data)], at), levels


def _level_classification(model: EnergyModel, x: Tensor, at: At, energy: Tensor, noise: SharedNoise) -> Tensor:
    """Return the loss of telling the level of `x` = x_t, whose energy is `energy` (B,), from a neighbour of it.

    Both neighbours are equally likely, so that x is as often of the one level of a pair as of the other. A neighbour
    beyond the ends is the level itself, which costs a constant.
    """
    step = torch.where(noise.uniform(energy) < 0.5, -1, 1)
    other = at.on((at.level + step).clamp(0, model.num_levels - 1))
    other_energy = model.energy(expand(model.schedule.scale[other.level], x) * x, other)
    if model.base is None or model.config.energy == "log_snr":
        return level_classification_loss(energy, other_energy)
    own, others = (model.base.log_volume(level) for level in (at.level, other.level))
    return level_classification_loss(energy + own, other_energy + others)


def _noise_contrast(model: EnergyModel, x_data: Tensor, at: At, epsilon: Tensor, noise: SharedNoise) -> Tensor:
    assert model.base is not None
    signal, spread = (expand(torch.sigmoid(sign * at.level).sqrt(), x_data) for sign in (1, -1))
    x = signal * x_data + spread * epsilon
    factor = math.exp(_CONTRAST_NATS / x_data[0].numel())
    other, noise_energy = model.base.widened(at.level, x_data, noise, factor)
    level = torch.cat([at.level, at.level])  # without labels, which noise does not have
    energy = model.continuous_energy(torch.cat([x, other]), At(level))
    ours, theirs = energy.chunk(2)
    return noise_contrastive_loss(noise_energy(x) - ours, noise_energy(other) - theirs)


def _stratified_log_snr(model: EnergyModel, x_data: Tensor, noise: SharedNoise) -> Tensor:
    """Draw log-SNRs (B,) between those of the top level and level 0, with density ∝ (λ − min)^tilt, spread evenly."""
    high, low = model.log_snr[0], model.log_snr[-1]
    return low + (high - low) * noise.spread(x_data) ** (1 / (1 + model.config.score_matching.low_noise_tilt))

"""Parity with the authors' TensorFlow release, to 1e-4 relative, on their own recorded numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from model.chains.sampling import descend
from model.conditions import At
from model.config import SamplingConfig, ScheduleConfig
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.schedule import make_schedule
from model.training.losses import contrastive_loss
from tests.model.checkpoints.official import golden, images, release_model

_RELATIVE = 1e-4


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Largest difference at most 1e-4 of the largest value."""
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= _RELATIVE * float(theirs.abs().max())


@pytest.fixture
def model() -> EnergyModel:
    return release_model()


def test_the_published_schedule_is_the_release_s() -> None:
    schedule = make_schedule(ScheduleConfig())
    for ours, name in (
        (schedule.alpha, "a_s"),
        (schedule.sigma, "sigmas"),
        (schedule.alpha_bar, "a_s_cum"),
        (schedule.sigma_bar, "sigmas_cum"),
    ):
        np.testing.assert_allclose(ours.numpy(), golden()[name], rtol=1e-12)
    np.testing.assert_allclose(schedule.scale.numpy(), golden()["a_s_prev"][1:], rtol=1e-12)


def test_the_network_computes_the_release_s_output_and_input_gradient(model: EnergyModel) -> None:
    x, level = images("net_input_nhwc"), torch.from_numpy(golden()["net_t"]).long()
    negative_output, gradient = energy_and_score(lambda y: -model.net_output(y, At(level)), x)
    assert_close(-negative_output, torch.from_numpy(golden()["net_output"]))
    assert_close(gradient, images("net_input_gradient"))


class _RecordedNoise:
    """The normals the release drew, in its order."""

    def __init__(self, normals: Tensor) -> None:
        self._normals = iter(normals)

    def normal(self, like: Tensor) -> Tensor:
        return torch.as_tensor(next(self._normals)).to(like)

    def uniform(self, like: Tensor) -> Tensor:
        raise AssertionError(f"plain Langevin draws no uniforms; asked for {like.shape}")


def test_progressive_sampling_follows_the_release_s_run_through_every_level(model: EnergyModel) -> None:
    samples = descend(
        model,
        images("chain_start"),
        _RecordedNoise(images("chain_noise")),
        SamplingConfig(num_steps=5),
        levels=range(6),
    )
    for recorded, level in zip(images("chain_levels"), (5, 4, 3, 2, 1, 0), strict=True):
        assert_close(samples.levels[level], recorded)
    assert_close(samples.x, images("chain_levels")[-1].clamp(-1, 1))  # of 8-bit images
    assert samples.gradient_evaluations == 30


def test_the_training_loss_and_its_gradient_norm_are_the_release_s(model: EnergyModel) -> None:
    level = torch.from_numpy(golden()["loss_t"]).long()
    scale = model.schedule.scale[level].float().reshape(-1, 1, 1, 1)
    positive = model.energy(scale * images("loss_x_pos"), At(level))
    negative = model.energy(scale * images("loss_x_neg"), At(level))
    loss = contrastive_loss(positive, negative, model.loss_weight[level]).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt()
    assert_close(loss.detach().reshape(()), torch.tensor(golden()["loss"]).reshape(()))
    assert_close(norm, torch.tensor(float(golden()["loss_grad_norm"]), dtype=torch.float64))

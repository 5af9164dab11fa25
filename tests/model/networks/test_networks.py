"""Networks: spectral norm, freezing, levels as a vector, any shape of event."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch

from model.conditions import At
from model.config import Activation, NetworkConfig, NetworkKind, Precision
from model.errors import ShapeError
from model.event_kinds.registry import kind_of
from model.networks.blocks import ResidualBlock, sinusoidal_embedding
from model.networks.freezing import frozen, iterate_power
from model.networks.mlp import MLPEnergy
from model.networks.registry import make_network
from model.networks.resnet import ResNetEnergy
from model.networks.unet import UNetEnergy

_SMALL = NetworkConfig(width=8, multipliers=(1, 2), num_blocks=1)


@pytest.mark.parametrize(
    ("config", "event"),
    [
        (_SMALL, (1, 8, 8)),
        (_SMALL, (3, 9, 7)),
        (
            NetworkConfig(width=8, multipliers=(1, 1, 2), num_blocks=2, activation="silu", spectral_norm=False),
            (2, 5, 11),
        ),
        (NetworkConfig(width=8, multipliers=(1, 2), num_blocks=1, coordinates=True, head_width=12), (1, 7, 6)),
        (replace(_SMALL, kind="unet"), (1, 8, 8)),
        (
            NetworkConfig(kind="unet", width=8, multipliers=(1, 1, 2), num_blocks=2, activation="silu"),
            (2, 5, 11),
        ),
        (NetworkConfig(kind="mlp", width=16, num_blocks=2), (2,)),
        (NetworkConfig(kind="mlp", width=16, num_blocks=1, activation="silu", spectral_norm=False), (3, 4, 2)),
    ],
)
def test_one_energy_for_each_event_at_its_own_level(config: NetworkConfig, event: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = make_network(config, event)
    x, level = torch.randn(6, *event), torch.tensor([0, 5, 2, 3, 1, 4])
    together = network(x, At(level))
    assert together.shape == (6,)
    alone = torch.cat([network(x[i : i + 1], At(level[i : i + 1])) for i in range(6)])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together, network(x, At(level.flip(0))))


def test_images_are_required_where_convolutions_are_asked_for() -> None:
    with pytest.raises(ShapeError, match=r"takes images, but the data are vectors of shape .* use 'mlp'"):
        make_network(_SMALL, (2,))


def test_every_kind_of_event_has_its_networks_and_no_other_shape_has_any() -> None:
    for shape in ((1, 8, 8), (3,)):
        for name in kind_of(shape).networks:
            network = make_network(replace(_SMALL, kind=cast(NetworkKind, name)), shape)
            assert network(torch.zeros(2, *shape), At(torch.tensor([0, 1]))).shape == (2,)
    with pytest.raises(ShapeError, match=r"expected images \(C, H, W\) or vectors"):
        make_network(replace(_SMALL, kind="mlp"), (3, 4))


def test_the_paper_s_cifar_network_has_the_size_of_the_release() -> None:
    """9,056,256 parameters with N = 2: counted in the authors' release."""
    network = ResNetEnergy(NetworkConfig(width=128, multipliers=(1, 2, 2, 2), num_blocks=2), (3, 32, 32))
    assert sum(p.numel() for p in network.parameters()) == 9_056_256


def test_the_length_of_a_stored_vector_does_not_scale_the_weights() -> None:
    """The authors' averaged checkpoints hold averages of unit vectors, which are shorter."""
    torch.manual_seed(0)
    network = make_network(_SMALL, (1, 8, 8))
    x, level = torch.randn(3, 1, 8, 8), torch.arange(3)
    expected = network(x, At(level))
    for name, buffer in network.named_buffers():
        if name.endswith("left_vector"):
            buffer *= 0.3
    torch.testing.assert_close(network(x, At(level)), expected)


def test_power_iteration_brings_every_leading_singular_value_to_one() -> None:
    torch.manual_seed(0)
    network = MLPEnergy(NetworkConfig(kind="mlp", width=16, num_blocks=1), (4,))
    iterate_power(network, 300)
    for name, module in network.named_modules():
        if getattr(module, "spectral_norm", False):
            applied = torch.linalg.matrix_norm(module.normalized_weight().detach().flatten(1), ord=2)
            if module.bound_only:
                assert float(applied) <= 1 + 1e-4, name
            else:
                assert float(applied) == pytest.approx(1, abs=1e-3), name


def test_a_bounded_weight_is_left_alone_below_one_and_divided_above() -> None:
    torch.manual_seed(0)
    network = MLPEnergy(NetworkConfig(kind="mlp", width=8, num_blocks=1), (4,))
    layer = cast(ResidualBlock, network.blocks[0]).map2
    for size, expected in ((0.3, 0.3), (5.0, 1.0)):
        with torch.no_grad():
            layer.weight.copy_(size * torch.linalg.qr(torch.randn(8, 8))[0])
        iterate_power(network, 50)
        assert float(torch.linalg.matrix_norm(layer.normalized_weight().detach(), ord=2)) == pytest.approx(
            expected, rel=1e-4
        )


def test_gradients_pass_through_the_singular_value() -> None:
    """W/s(W) does not change when W grows, so the gradient along W is zero."""
    torch.manual_seed(0)
    network = MLPEnergy(NetworkConfig(kind="mlp", width=8, num_blocks=1), (4,)).double()
    iterate_power(network, 200)
    network(torch.randn(5, 4, dtype=torch.float64), At(torch.zeros(5, dtype=torch.int64))).sum().backward()
    weight, gradient = network.dense_in.weight.detach(), network.dense_in.weight.grad
    assert gradient is not None
    assert float(gradient.norm()) > 0
    assert abs(float((weight * gradient).sum())) < 1e-8 * float(gradient.norm() * weight.norm())


def test_a_frozen_network_computes_the_same_and_takes_no_weight_gradient() -> None:
    torch.manual_seed(0)
    network = ResNetEnergy(_SMALL, (1, 8, 8))
    x, level = torch.randn(3, 1, 8, 8, requires_grad=True), torch.tensor([0, 1, 2])
    free = network(x, At(level))
    with frozen(network):
        fixed = network(x, At(level))
        (gradient,) = torch.autograd.grad(fixed.sum(), x)
        assert all(not p.requires_grad for p in network.parameters())
    torch.testing.assert_close(fixed, free)
    assert float(gradient.abs().sum()) > 0
    assert all(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        network.conv_in.bias.add_(1.0)
    assert not torch.allclose(network(x, At(level)), fixed)


@pytest.mark.parametrize("spectral_norm", [True, False])
def test_a_unet_s_slope_agrees_with_its_values_whether_its_weights_are_fixed_or_not(*, spectral_norm: bool) -> None:
    torch.manual_seed(0)
    config = replace(_SMALL, kind="unet", activation="silu", num_blocks=2, spectral_norm=spectral_norm)
    network = make_network(config, (2, 6, 7), num_classes=3).double()
    for parameter in network.parameters():  # no weight near zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    x, at = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True), At(torch.tensor([0, 4]))
    assert network(x, at).shape == (2, 3)
    torch.autograd.gradcheck(lambda position: network(position, at), x)
    free = torch.autograd.grad(network(x, at)[:, 1].sum(), x)
    with frozen(network):
        torch.testing.assert_close(torch.autograd.grad(network(x, at)[:, 1].sum(), x), free)


def test_what_a_unet_draws_pulls_every_class_alike() -> None:
    """With its image f at 0 it is the paper's network; f shifts all outputs by ⟨x, f⟩ − ½|f|²."""
    torch.manual_seed(0)
    config = replace(_SMALL, kind="unet", activation="silu", spectral_norm=False)
    network = make_network(config, (1, 8, 8), num_classes=3)
    assert isinstance(network, UNetEnergy)
    x, at = torch.randn(2, 1, 8, 8), At(torch.tensor([0, 1]))
    torch.nn.init.zeros_(network.conv_out.weight)
    torch.nn.init.zeros_(network.conv_out.bias)
    without = network(x, at)
    torch.testing.assert_close(without, ResNetEnergy.forward(network, x, at))
    torch.nn.init.constant_(network.conv_out.bias, 0.5)
    expected = (0.5 * x - 0.125).sum((1, 2, 3))[:, None].expand(-1, 3)
    torch.testing.assert_close(network(x, at) - without, expected)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_the_gradient_written_out_for_frozen_blocks_is_that_of_autograd(activation: Activation) -> None:
    torch.manual_seed(0)
    network = ResNetEnergy(replace(_SMALL, activation=activation), (2, 8, 6)).double()
    for parameter in network.parameters():  # no weight near zero, no gain of one
        parameter.data += 0.1 * torch.randn_like(parameter)
    iterate_power(network, 5)
    x, level = torch.randn(3, 2, 8, 6, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2])
    (free,) = torch.autograd.grad(network(x, At(level)).sum(), x)
    with frozen(network):
        (fixed,) = torch.autograd.grad(network(x, At(level)).sum(), x)
    torch.testing.assert_close(fixed, free)


@pytest.mark.parametrize(
    ("config", "event", "score_tolerance"),
    [
        (replace(_SMALL, activation="silu"), (1, 8, 8), 0.02),
        (_SMALL, (1, 8, 8), 0.1),  # rounding moves activations across the kink, where the slope jumps
        (NetworkConfig(kind="mlp", width=32, num_blocks=2), (6,), 0.1),
    ],
)
def test_bfloat16_layers_answer_near_float32_and_in_it(
    config: NetworkConfig, event: tuple[int, ...], score_tolerance: float
) -> None:
    """Energies within 2 %, scores of a smooth activation too."""
    torch.manual_seed(0)
    network = make_network(config, event)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x, level = torch.randn(64, *event, requires_grad=True), torch.arange(64) % 6

    def answers(precision: Precision) -> tuple[torch.Tensor, torch.Tensor]:
        with frozen(network, precision):
            output = network(x, At(level))
            return output.detach(), torch.autograd.grad(output.sum(), x)[0]

    tolerances = (0.02, score_tolerance)
    for exact, rounded, tolerance in zip(answers("float32"), answers("bfloat16"), tolerances, strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < float((rounded - exact).norm()) < tolerance * float(exact.norm())
    assert network.precision == "float32"


def test_freezing_ends_also_after_an_error() -> None:
    network = ResNetEnergy(_SMALL, (1, 8, 8))
    with pytest.raises(RuntimeError, match="stop"), frozen(network):
        raise RuntimeError("stop")
    assert all(p.requires_grad for p in network.parameters())


def test_the_embedding_is_sines_then_cosines_from_frequency_one_to_a_ten_thousandth() -> None:
    code = sinusoidal_embedding(torch.tensor([3]), 8)[0].double()
    frequencies = torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4], dtype=torch.float64)
    torch.testing.assert_close(code, torch.cat([(3 * frequencies).sin(), (3 * frequencies).cos()]), atol=1e-6, rtol=0)
    assert sinusoidal_embedding(torch.tensor([1]), 9).shape == (1, 9)

"""Convolutions by Winograd's tiles: exact in double precision, near enough in single, and used where they pay."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model.conditions import At
from model.config import NetworkConfig, Precision, TrainConfig
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.networks import winograd
from model.networks.layers import Conv3x3

_WIDE = TrainConfig(network=NetworkConfig(width=96, multipliers=(1, 2), num_blocks=1, activation="silu"))
"""wide enough for tiles, smooth enough to compare gradients"""


def _drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (5, 7), (1, 1), (9, 3)])
@pytest.mark.parametrize("chunk_bytes", [1, 8_000_000])
def test_in_double_precision_it_is_the_convolution(
    size: tuple[int, int], chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "_CHUNK_BYTES", chunk_bytes)
    x, weight, bias = _drawn(3, 5, *size), _drawn(7, 5, 3, 3), _drawn(7)
    kernel = winograd.transform_kernel(weight)
    for some in (x, x.contiguous(memory_format=torch.channels_last), x[:1]):
        torch.testing.assert_close(winograd.convolve(some, kernel, bias), F.conv2d(some, weight, bias, padding=1))
    torch.testing.assert_close(winograd.convolve(x, kernel, None), F.conv2d(x, weight, padding=1))


def test_in_single_precision_it_rounds_to_a_hundred_thousandth_of_the_largest_output() -> None:
    x, weight, bias = _drawn(4, 128, 16, 16), _drawn(128, 128, 3, 3), _drawn(128)
    exact = F.conv2d(x, weight, bias, padding=1)
    found = winograd.convolve(x.float(), winograd.transform_kernel(weight.float()), bias.float())
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert float((found - exact).abs().max() / exact.abs().max()) < 3e-5


def test_bfloat16_is_what_comes_and_goes_and_float32_what_is_computed_in() -> None:
    x, weight = _drawn(2, 6, 8, 8).bfloat16(), _drawn(6, 6, 3, 3, dtype=torch.float32)
    found = winograd.convolve(x, winograd.transform_kernel(weight), None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, F.conv2d(x.float(), weight, padding=1).bfloat16(), atol=1e-3, rtol=1e-2)


def test_threads_do_not_share_their_buffers() -> None:
    weight = _drawn(16, 16, 3, 3)
    kernel, inputs = winograd.transform_kernel(weight), [_drawn(2, 16, 32, 32) + i for i in range(4)]
    wrong: list[int] = []

    def compare(index: int) -> None:
        expected = F.conv2d(inputs[index], weight, padding=1)
        for _ in range(30):
            if not torch.allclose(winograd.convolve(inputs[index], kernel, None), expected):
                wrong.append(index)

    threads = [threading.Thread(target=compare, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_it_is_left_to_wide_images_in_the_types_that_it_is_faster_in(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.zeros(2, 128, 8, 8)
    assert winograd.pays(wide, 128)
    assert not winograd.pays(wide, 3)
    assert not winograd.pays(wide[:, :64], 128)
    assert not winograd.pays(wide[:1], 128)  # 4 tiles
    assert not winograd.pays(wide.double(), 128)
    for slow in (True, False):
        monkeypatch.setattr(winograd, "bfloat16_is_slow", lambda slow=slow: slow)
        assert winograd.pays(wide.bfloat16(), 128) == slow
        assert winograd.pays(wide, 128)


def test_a_fixed_layer_that_autograd_looks_into_keeps_its_gradient() -> None:
    torch.manual_seed(0)
    layer, x = Conv3x3(128, 128, spectral_norm=True), torch.randn(2, 128, 8, 8, requires_grad=True)
    layer.freeze()
    y = layer(x)
    with torch.no_grad():
        assert not torch.equal(y, layer(x))  # which is by tiles
        torch.testing.assert_close(y, layer(x), atol=1e-4, rtol=0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    with torch.no_grad():
        torch.testing.assert_close(gradient, layer.transposed(torch.ones_like(y)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_energies_and_scores_of_a_frozen_network_stay_what_they_are(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "bfloat16_is_slow", lambda: True)
    torch.manual_seed(0)
    model = EnergyModel(_WIDE, (3, 16, 10))
    for parameter in model.network.parameters():  # no weight near zero, so that every layer counts
        parameter.data += 0.02 * torch.randn_like(parameter)
    x, level = torch.randn(3, 3, 16, 10), torch.tensor([0, 2, 5])
    convolutions: list[Tensor] = []
    convolve = winograd.convolve

    def watched(*args: Tensor) -> Tensor:
        convolutions.append(convolve(*args))
        return convolutions[-1]

    monkeypatch.setattr(winograd, "convolve", watched)
    with model.frozen(precision):
        energy, score = energy_and_score(lambda y: model.energy(y, At(level)), x)
    assert len(convolutions) == 2 * 5  # two blocks with two maps, one with a shortcut; forwards and backwards
    exact = model.double()
    expected_energy, expected_score = energy_and_score(lambda y: exact.energy(y, At(level)), x.double())
    tolerance = 1e-4 if precision == "float32" else 2e-2
    for found, expected in ((energy, expected_energy), (score, expected_score)):
        assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


def test_what_is_kept_of_frozen_weights_counts_as_memory_until_they_are_free() -> None:
    torch.manual_seed(0)
    model = EnergyModel(_WIDE, (3, 16, 10))
    before = model.memory_bytes
    assert before == sum(4 * tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    with model.frozen():
        energy_and_score(lambda y: model.energy(y, At(torch.arange(3))), torch.randn(3, 3, 16, 10))
        convolutions = sum(p.numel() for p in model.parameters() if p.dim() == 4)
        assert model.memory_bytes - before > 4 * 7 * convolutions  # applied, and four times as much for each direction
    assert model.memory_bytes == before

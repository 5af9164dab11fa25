"""Spaces: the way between the data and the coordinates of the energies, and back."""

from __future__ import annotations

import math

import torch

from model.event_kinds.pixels import BIN_WIDTH
from model.noise import SharedNoise, make_generator
from model.spaces.affine import AffineSpace
from model.spaces.space import Space

_COLUMNS = AffineSpace.standardized((2,), torch.tensor([10.0, -3.0]), torch.tensor([2.0, 0.25]))


def test_columns_are_standardized_and_come_back_in_their_own_units() -> None:
    data = torch.tensor([[12.0, -3.25]], dtype=torch.float64)
    x = _COLUMNS.encode(data)
    assert (x.dtype, x.tolist()) == (torch.float32, [[1, -1]])
    assert _COLUMNS.decode(x).tolist() == data.tolist()
    assert _COLUMNS.decode(torch.tensor([[100.0, 100.0]])).tolist() == [[210, 22]]  # continuous data have no range


def test_the_volume_is_the_determinant_of_the_map() -> None:
    jacobian = torch.func.jacrev(_COLUMNS.encode)(torch.zeros(2))
    assert math.isclose(_COLUMNS.log_volume(), float(jacobian.logdet()), rel_tol=1e-6)
    doubled = AffineSpace.standardized((3, 4, 4), torch.zeros(()), torch.tensor(0.5))
    assert math.isclose(doubled.log_volume(), 48 * math.log(2))


def test_pixels_are_their_own_coordinates_and_samples_of_them_are_clipped() -> None:
    space: Space = AffineSpace.discrete((1, 2, 2), BIN_WIDTH)
    x = torch.tensor([-1.0, -0.5, 0.25, 1.0]).reshape(1, 1, 2, 2)
    assert torch.equal(space.encode(x), x)
    assert torch.equal(space.decode(x), x)
    assert space.decode(2 * x).abs().max() == 1
    assert space.log_volume() == 0


def test_discrete_data_get_noise_of_one_bin_and_continuous_ones_none() -> None:
    data = torch.zeros(10_000, 1)
    noisy = AffineSpace.discrete((1,), 0.5).dequantized(data, SharedNoise(make_generator(0)))
    assert noisy.dtype == data.dtype
    assert -0.25 <= float(noisy.min()) < -0.249
    assert 0.249 < float(noisy.max()) <= 0.25
    assert abs(float(noisy.mean())) < 5 * 0.5 / math.sqrt(12 * len(data))
    assert torch.equal(_COLUMNS.dequantized(data, SharedNoise(make_generator(0))), data)

"""Planar densities: normalized, and their samples follow them."""

from __future__ import annotations

import math

import pytest
import torch

from model.data.planar import PLANAR_DENSITIES


@pytest.mark.parametrize("name", PLANAR_DENSITIES)
def test_the_density_integrates_to_one(name: str) -> None:
    density, side, count = PLANAR_DENSITIES[name](), 6.0, 600
    axis = (torch.arange(count, dtype=torch.float64) + 0.5) / count * side - side / 2
    grid = torch.cartesian_prod(axis, axis)
    integral = density.log_density(grid).exp().sum() * (side / count) ** 2
    assert float(integral) == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("name", PLANAR_DENSITIES)
def test_samples_follow_the_density_cell_by_cell(name: str) -> None:
    """χ² of counts in 8×8 cells against the integral of the density over each cell."""
    density, side, cells, fine, count = PLANAR_DENSITIES[name](), 5.2, 8, 65, 20_000
    axis = (torch.arange(cells * fine, dtype=torch.float64) + 0.5) / (cells * fine) * side - side / 2
    mass = density.log_density(torch.cartesian_prod(axis, axis)).exp() * (side / (cells * fine)) ** 2
    expected = count * mass.reshape(cells, fine, cells, fine).sum((1, 3)).flatten()
    points = density.sample(count, torch.Generator().manual_seed(0))
    index = torch.floor((points / side + 0.5) * cells).long().clamp(0, cells - 1)
    observed = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2).double()
    seen = expected > 5
    chi_squared = float(((observed - expected)[seen] ** 2 / expected[seen]).sum())
    freedom = int(seen.sum())
    assert chi_squared < freedom + 5 * math.sqrt(2 * freedom)
    assert float(observed[~seen].sum()) < 0.01 * count


@pytest.mark.parametrize("name", PLANAR_DENSITIES)
def test_the_data_are_of_order_one(name: str) -> None:
    points = PLANAR_DENSITIES[name]().sample(20_000, torch.Generator().manual_seed(1))
    assert (points.std(0) - 1).abs().max() < 0.4
    assert points.mean(0).abs().max() < 0.1

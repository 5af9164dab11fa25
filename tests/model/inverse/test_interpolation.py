"""The way between two samples begins at the first and is spherical in the starting noise."""

from __future__ import annotations

import pytest
import torch

from model.chains.sampling import sample
from model.errors import ConfigError
from model.inverse.interpolation import interpolate, spherical
from tests.model.inverse import exact


def test_the_way_begins_at_the_first_sample_and_goes_on_in_small_steps() -> None:
    events = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.4
    model = exact.mixture_model(events, 2, num_levels=8)

    way = interpolate(model, 3, 5, num_samples=9, seed=7)
    first = sample(model, 1, seed=7, first=3)

    torch.testing.assert_close(way.x[0], first.x[0], rtol=1e-3, atol=1e-3)
    steps = way.x.diff(dim=0).flatten(1).norm(dim=1)
    assert float(steps.max()) < float((way.x[-1] - way.x[0]).norm())


def test_the_arc_keeps_the_length_of_its_ends() -> None:
    one, other = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])
    arc = spherical(one, other, torch.tensor([0.0, 1 / 3, 0.5, 1.0]))

    torch.testing.assert_close(arc.norm(dim=1), torch.full((4,), 3.0))
    torch.testing.assert_close(arc[0], one)
    torch.testing.assert_close(arc[-1], other, atol=1e-6, rtol=0)
    assert float(arc[1, 0] / arc[1, 1]) == pytest.approx(3**0.5, rel=1e-5)


def test_a_way_has_two_ends() -> None:
    model = exact.mixture_model(torch.randn(300, 1, 4, 4), 2, num_levels=3)

    with pytest.raises(ConfigError, match="two at least"):
        interpolate(model, 0, 1, num_samples=1)

"""Three settings are chosen from measured points: of the cheapest that will do, and never by noise alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.config import SamplingConfig
from model.errors import ConfigError
from model.frontier import Frontier, Point, Quality, Setting, TuneConfig, candidates, choose


def _point(evaluations: int, frechet: float, *, error: float = 0.01, one_nn: float = 0.6, **other: Any) -> Point:
    """A point whose setting has as many steps as it takes evaluations."""
    values = {"start": "multistep", "num_steps": evaluations, "one_nn_error": 0.01, **other}
    return Point(evaluations=evaluations, frechet=frechet, frechet_error=error, one_nn=one_nn, **values)


def _evaluations(chosen: dict[Quality, Setting]) -> dict[str, int]:
    return {quality: setting.num_steps for quality, setting in chosen.items()}


def test_the_knee_of_a_falling_curve_is_the_standard_and_the_bend_before_it_the_draft() -> None:
    points = [_point(14, 1.2), _point(42, 0.7), _point(84, 0.51), _point(140, 0.505), _point(300, 0.5)]
    assert _evaluations(choose(points)) == {"draft": 42, "standard": 84, "best": 300}


def test_points_that_the_noise_does_not_tell_apart_cost_the_least() -> None:
    points = [_point(300, 0.47, error=0.02), _point(14, 0.49, error=0.02), _point(84, 0.48, error=0.02)]
    assert _evaluations(choose(points)) == {"draft": 14, "standard": 14, "best": 300}


def test_the_order_in_which_points_were_measured_does_not_matter() -> None:
    points = [_point(14, 1.2), _point(42, 0.7), _point(84, 0.51), _point(300, 0.5)]
    assert choose(reversed(points)) == choose(points)


def test_a_standard_is_as_near_by_its_neighbours_too() -> None:
    points = [_point(14, 0.5, one_nn=0.9), _point(84, 0.5, one_nn=0.61), _point(300, 0.49, one_nn=0.6)]
    assert _evaluations(choose(points)) == {"draft": 14, "standard": 84, "best": 300}


def test_more_evaluations_that_make_samples_worse_are_never_chosen() -> None:
    points = [_point(14, 0.47), _point(42, 0.6), _point(84, 0.9)]
    assert _evaluations(choose(points)) == {"draft": 14, "standard": 14, "best": 14}


def test_one_point_serves_all_three_and_none_is_an_error() -> None:
    assert _evaluations(choose([_point(7, 3.0)])) == {"draft": 7, "standard": 7, "best": 7}
    with pytest.raises(ConfigError, match="no setting was measured"):
        choose([])


def test_the_models_own_setting_is_measured_first_and_once() -> None:
    own = SamplingConfig(start="neighbour", num_steps=30)
    assert candidates(own, 4) == [
        Setting(start="neighbour", num_steps=30),
        *(Setting(start="multistep", num_steps=num_steps) for num_steps in (0, 1, 2, 4)),
    ]
    assert [one.num_steps for one in candidates(SamplingConfig(start="multistep", num_steps=2), 5)] == [2, 0, 1, 4]
    assert [one.num_steps for one in candidates(own, 0)] == [30, 0]


def test_a_frontier_is_read_as_it_was_written_and_one_of_a_later_version_refused() -> None:
    points = (_point(14, 0.5), _point(42, 0.45))
    frontier = Frontier(
        step=3,
        points=points,
        **choose(points),
        features="pca",
        num_features=9,
        num_samples=1000,
        num_held_out=90,
        seed=0,
        created_at="2026-11-28T00:00:00+00:00",
    )
    stored = json.loads(json.dumps(frontier.to_dict()))
    assert Frontier.from_dict(stored) == frontier
    assert frontier.setting("best") == points[1].setting
    with pytest.raises(ConfigError, match="version 2; this release reads 1"):
        Frontier.from_dict({**stored, "version": 2})


@pytest.mark.parametrize("values", [{"num_samples": 10}, {"max_steps": -1}, {"max_seconds": 0.0}])
def test_a_tuning_out_of_range_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        TuneConfig(**values)

"""The figures a model is judged by, against closed forms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from model import evaluation
from model.errors import DataError, ShapeError
from model.evaluation import GaussianMoments


def _normal(count: int, dimensions: int, seed: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((count, dimensions))


def test_frechet_distance_of_gaussians_with_commuting_covariances_is_the_closed_form() -> None:
    a = GaussianMoments(mean=np.array([1.0, -2.0]), covariance=np.diag([4.0, 9.0]))
    b = GaussianMoments(mean=np.array([0.0, 1.0]), covariance=np.diag([1.0, 25.0]))

    distance = evaluation.gaussian_frechet_distance(a, b)

    assert distance == pytest.approx(1 + 9 + (2 - 1) ** 2 + (3 - 5) ** 2, rel=1e-12)


def test_frechet_distance_does_not_depend_on_the_axes() -> None:
    rotation = np.linalg.qr(_normal(3, 3, seed=0))[0]
    a = GaussianMoments(mean=np.zeros(3), covariance=rotation @ np.diag([1.0, 4.0, 9.0]) @ rotation.T)
    b = GaussianMoments(mean=np.ones(3), covariance=rotation @ np.diag([4.0, 1.0, 0.0]) @ rotation.T)

    assert evaluation.gaussian_frechet_distance(a, b) == pytest.approx(3 + 1 + 1 + 9, rel=1e-9)


def test_frechet_distance_is_symmetric_for_covariances_that_do_not_commute() -> None:
    a = evaluation.gaussian_moments(_normal(50, 4, seed=1) * [1, 2, 3, 4])
    b = evaluation.gaussian_moments(_normal(50, 4, seed=2) @ _normal(4, 4, seed=3))

    forward, backward = evaluation.gaussian_frechet_distance(a, b), evaluation.gaussian_frechet_distance(b, a)

    assert forward == pytest.approx(backward, rel=1e-9)
    assert forward > 0


def test_frechet_distance_of_a_set_to_itself_shifted_is_the_squared_shift() -> None:
    events = _normal(100, 6, seed=4).reshape(100, 1, 2, 3)

    assert evaluation.frechet_distance(events, events) == pytest.approx(0, abs=1e-9)
    assert evaluation.frechet_distance(events, events + 0.5) == pytest.approx(6 * 0.25, rel=1e-9)


def test_neighbours_cannot_tell_two_samples_of_one_distribution_apart() -> None:
    count = 1000
    accuracy = evaluation.nearest_neighbour_accuracy(_normal(count, 2, seed=5), _normal(count, 2, seed=6))

    # Neighbouring decisions are correlated, which at most doubles the binomial variance.
    assert accuracy == pytest.approx(0.5, abs=5 * (2 * 0.25 / (2 * count)) ** 0.5)


def test_neighbours_tell_two_distant_clouds_apart_always() -> None:
    assert evaluation.nearest_neighbour_accuracy(_normal(50, 2, seed=7), _normal(50, 2, seed=8) + 100) == 1.0


def test_exact_copies_are_never_the_work_of_a_good_model() -> None:
    events = _normal(50, 2, seed=9)

    assert evaluation.nearest_neighbour_accuracy(events, events.copy()) == 0.0


def test_a_longer_set_does_not_change_the_base_rate() -> None:
    accuracy = evaluation.nearest_neighbour_accuracy(_normal(300, 2, seed=10), _normal(3000, 2, seed=11))

    assert accuracy == pytest.approx(0.5, abs=0.15)


def test_copies_of_training_items_are_counted() -> None:
    train, held_out = _normal(200, 8, seed=12), _normal(200, 8, seed=13)
    nearest = evaluation.nearest_distances(held_out, train).min()
    # Along one axis: seven copies, and three that are near without being copies.
    shift = np.eye(1, 8)
    generated = np.concatenate([train[:7] + 1e-4 * shift, train[7:10] + 0.9 * nearest * shift, train[:90] + 50])

    result = evaluation.copy_test(generated, train, held_out)

    assert (result.copies, result.nearer_than_held_out) == (7, 10)
    assert result.generated_minimum == pytest.approx(1e-4, rel=1e-6)
    assert result.held_out_minimum == nearest == 2 * result.copy_distance


def test_class_shares_are_those_of_separable_clouds() -> None:
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    labels = np.repeat([0, 1, 2], 40)
    train = centres[labels] + _normal(120, 2, seed=15)
    generated = centres[np.repeat([0, 2], [30, 10])] + _normal(40, 2, seed=16)

    assert evaluation.class_shares(train, labels, generated) == {0: 0.75, 1: 0.0, 2: 0.25}


def test_reference_models_have_the_moments_they_were_fitted_to() -> None:
    train = (_normal(2000, 4, seed=17) @ _normal(4, 4, seed=18)).reshape(2000, 1, 2, 2)

    gaussian = evaluation.sample_gaussian(train, 4000, seed=0)
    mixture = evaluation.sample_mixture(train, 4000, num_components=2, seed=0)

    scale = np.trace(evaluation.gaussian_moments(train).covariance)
    assert gaussian.shape == mixture.shape == (4000, 1, 2, 2)
    assert evaluation.frechet_distance(train, gaussian) < 0.01 * scale
    assert evaluation.frechet_distance(train, mixture) < 0.01 * scale


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="1 events hold values that are not finite"):
        evaluation.frechet_distance(np.array([[0.0], [np.nan]]), np.zeros((2, 1)))
    with pytest.raises(ShapeError, match="at least 2"):
        evaluation.frechet_distance(np.zeros((1, 3)), np.zeros((2, 3)))


def test_samples_are_compared_with_held_out_data_and_the_error_of_the_distance_is_its_spread() -> None:
    reference = evaluation.Reference(_normal(1000, 3, 0), _normal(50_000, 3, 1), num_samples=2000)
    assert (reference.name, reference.num_features) == ("data", 3)
    drawn = [_normal(2000, 3, 2 + index) + 0.1 for index in range(30)]
    found = [reference.compare(np.array_split(one, 5)) for one in drawn]
    distances = [one.frechet for one in found]
    assert np.mean(distances) == pytest.approx(0.03, abs=0.01)  # three times the square of the shift
    assert np.mean([one.frechet_error for one in found]) == pytest.approx(np.std(distances), rel=0.3)
    assert np.mean([one.one_nn for one in found]) == pytest.approx(0.5, abs=0.02)
    assert found[0].one_nn_error == pytest.approx((0.25 / 4000) ** 0.5, rel=0.01)


def test_events_of_more_values_than_their_number_allows_are_compared_by_principal_components() -> None:
    scale = np.concatenate([np.full(4, 10.0), np.full(396, 0.1)])
    train, held_out, drawn = (_normal(200, 400, seed) * scale for seed in range(3))
    reference = evaluation.Reference(train, held_out, num_samples=16)
    assert (reference.name, reference.num_features) == ("pca", 4)
    features = reference.features(train)
    np.testing.assert_allclose(np.var(features, axis=0), np.full(4, 100.0), rtol=0.5)
    np.testing.assert_allclose(np.cov(features, rowvar=False), np.diag(np.var(features, axis=0, ddof=1)), atol=1e-6)
    shifted = drawn + np.eye(400)[0] * 20  # along one of the four
    same, moved = (reference.compare(np.array_split(one, 4)) for one in (drawn, shifted))
    assert moved.frechet - same.frechet > 300

"""Distances and tests that say how close generated samples are to real data. They use no torch.

Every function takes arrays (N, *event), in the units in which the caller compares; events are flattened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.spatial.distance import cdist

from model.errors import DataError, ShapeError

Array = npt.NDArray[np.floating]
_TIE = 1e-9
_EVENTS_PER_FEATURE = 4
_MAX_COMPONENTS = 64
_MAX_FITTED = 2_000  # events that principal components are fitted to: their products take the square of it


@dataclass(frozen=True, kw_only=True)
class GaussianMoments:
    """The mean (D,) and covariance (D, D) of flattened events."""

    mean: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CopyTest:
    """How far samples lie from their nearest training items, compared with how far unseen real items lie from theirs.

    Distances are Euclidean, in the units of the data.
    """

    generated_median: float
    generated_minimum: float
    held_out_median: float
    held_out_minimum: float
    nearer_than_held_out: int
    """number of samples nearer to a training item than any held-out item is; a perfect model has about one"""
    copies: int
    """number of samples nearer than `copy_distance` to a training item"""
    copy_distance: float
    """half the smallest distance of a held-out item: real data does not come so near"""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How near samples come to real data, with standard errors."""

    frechet: float
    """Fréchet distance, in squared units of the features"""
    frechet_error: float
    """its standard error, by the jackknife over groups of the samples"""
    one_nn: float
    """accuracy of the nearest neighbour; 0.5 is perfect"""
    one_nn_error: float
    """its standard error, that of as many decisions as there are samples and real events"""


class Reference:
    """Held-out data that samples are compared with.

    A covariance needs several events for each feature. Where there are fewer than four, the features are the events'
    coordinates on the largest principal components of the training data, in place of all their values.
    """

    def __init__(self, train: Array, held_out: Array, *, num_samples: int) -> None:
        """Prepare to compare `num_samples` at a time with `held_out` (N, *event)."""
        most = max(1, min(len(held_out), num_samples) // _EVENTS_PER_FEATURE)
        flat = rows(train)
        self._mean, self._axes = flat.mean(0), None
        if flat.shape[1] > most:
            self._axes = _principal_axes(flat[:_MAX_FITTED] - self._mean, min(most, _MAX_COMPONENTS))
        self._held_out = self.features(held_out)

    @property
    def name(self) -> Literal["data", "pca"]:
        """What is compared: all values, or principal components."""
        return "data" if self._axes is None else "pca"

    @property
    def num_features(self) -> int:
        """The number of values that stand for an event."""
        return int(self._held_out.shape[1])

    def features(self, events: Array) -> npt.NDArray[np.float64]:
        """Return the features (N, F) of events. Raises DataError for values that are not finite."""
        flat = rows(events)
        return flat if self._axes is None else np.asarray((flat - self._mean) @ self._axes)

    def compare(self, groups: Sequence[Array]) -> Likeness:
        """Compare all samples of at least two groups of equal size. Raises DataError, ShapeError."""
        drawn = [self.features(group) for group in groups]
        real = gaussian_moments(self._held_out)
        together = np.concatenate(drawn)
        without = [
            gaussian_frechet_distance(real, gaussian_moments(np.concatenate(drawn[:index] + drawn[index + 1 :])))
            for index in range(len(drawn))
        ]
        accuracy = nearest_neighbour_accuracy(self._held_out, together)
        decisions = 2 * min(len(self._held_out), len(together))
        return Likeness(
            frechet=gaussian_frechet_distance(real, gaussian_moments(together)),
            frechet_error=float(np.sqrt((len(drawn) - 1) * np.var(without))),
            one_nn=accuracy,
            one_nn_error=float(np.sqrt(accuracy * (1 - accuracy) / decisions)),
        )


def rows(events: Array) -> npt.NDArray[np.float64]:
    """Flatten events (N, *event) to (N, D) float64.

    Raises DataError for values that are not finite, ShapeError for fewer than two events.
    """
    flat = np.asarray(events, dtype=np.float64).reshape(len(events), -1)
    if len(flat) < 2:
        raise ShapeError(f"got {len(flat)} events; expected at least 2 to compare distributions")
    if not np.isfinite(flat).all():
        raise DataError(f"{int((~np.isfinite(flat)).any(1).sum())} events hold values that are not finite")
    return flat


def gaussian_moments(events: Array) -> GaussianMoments:
    """Return the sample mean and the unbiased covariance of `events`."""
    flat = rows(events)
    return GaussianMoments(mean=flat.mean(0), covariance=np.atleast_2d(np.cov(flat, rowvar=False)))


def gaussian_frechet_distance(a: GaussianMoments, b: GaussianMoments) -> float:
    """Return |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^{1/2}), in squared data units (Dowson & Landau 1982).

    The trace of the root comes from the eigenvalues of Σ_a^{1/2} Σ_b Σ_a^{1/2}. That matrix is symmetric, so they are
    real, and stable also for the singular covariances that constant pixels give.
    """
    root = _symmetric_root(a.covariance)
    product = eigh(root @ b.covariance @ root, eigvals_only=True)
    cross = np.sqrt(np.clip(product, 0, None)).sum()
    mean_part = np.sum((a.mean - b.mean) ** 2)
    return float(mean_part + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def frechet_distance(real: Array, generated: Array) -> float:
    """Return the Fréchet distance between the moments of two sets of events, in squared data units; 0 is perfect."""
    return gaussian_frechet_distance(gaussian_moments(real), gaussian_moments(generated))


def nearest_neighbour_accuracy(real: Array, generated: Array) -> float:
    """Return the leave-one-out 1-nearest-neighbour accuracy at telling `real` from `generated`.

    0.5 is perfect, 1 is hopeless. Both sets are cut to the length of the shorter one, since otherwise the base rate
    would not be one half. A nearest neighbour that is tied between the sets counts as half right. Source: Lopez-Paz &
    Oquab 2017.
    """
    count = min(len(real), len(generated))
    first, second = rows(real)[:count], rows(generated)[:count]
    across = cdist(first, second)
    right = _own_side_is_nearer(cdist(first, first), across) + _own_side_is_nearer(cdist(second, second), across.T)
    return float(right / (2 * count))


def nearest_distances(queries: Array, references: Array) -> npt.NDArray[np.float64]:
    """Return the Euclidean distance (N,) of every query to its nearest reference."""
    return np.asarray(cdist(rows(queries), rows(references)).min(1), dtype=np.float64)


def copy_test(generated: Array, train: Array, held_out: Array) -> CopyTest:
    """Test whether samples are copies of training items, judged by how near unseen real items come to those."""
    to_train = nearest_distances(generated, train)
    unseen = nearest_distances(held_out, train)
    nearest_unseen = float(unseen.min())
    return CopyTest(
        generated_median=float(np.median(to_train)),
        generated_minimum=float(to_train.min()),
        held_out_median=float(np.median(unseen)),
        held_out_minimum=nearest_unseen,
        nearer_than_held_out=int((to_train < nearest_unseen).sum()),
        copies=int((to_train < nearest_unseen / 2).sum()),
        copy_distance=nearest_unseen / 2,
    )


def class_shares(train: Array, labels: npt.NDArray[np.integer], generated: Array) -> dict[int, float]:
    """Return the share of generated events in each class, by a logistic regression fitted to labelled real events."""
    from sklearn.linear_model import LogisticRegression

    predicted = LogisticRegression(max_iter=5000).fit(rows(train), labels).predict(rows(generated))
    return {int(label): float(np.mean(predicted == label)) for label in np.unique(labels)}


def sample_gaussian(train: Array, count: int, *, seed: int) -> npt.NDArray[np.float32]:
    """Draw events from the single Gaussian fitted to `train`, which any model must beat."""
    moments = gaussian_moments(train)
    drawn = np.random.default_rng(seed).multivariate_normal(moments.mean, moments.covariance, count, method="eigh")
    return drawn.reshape(count, *np.shape(train)[1:]).astype(np.float32)


def sample_mixture(train: Array, count: int, *, num_components: int, seed: int) -> npt.NDArray[np.float32]:
    """Draw events from a mixture of Gaussians of full covariance, fitted to `train` by expectation maximisation.

    It is a simple but strong model.
    """
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(num_components, covariance_type="full", reg_covar=1e-3, random_state=seed)
    drawn, _ = mixture.fit(rows(train)).sample(count)
    # sklearn returns samples sorted by component.
    shuffled = np.random.default_rng(seed).permutation(drawn)
    return np.asarray(shuffled.reshape(count, *np.shape(train)[1:]), dtype=np.float32)


def _principal_axes(centred: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Return the `count` axes (D, count) of largest variance, from the products of the rows, which are fewer than D."""
    size = len(centred)
    values, vectors = eigh(centred @ centred.T, subset_by_index=[max(0, size - count), size - 1])
    return np.asarray(centred.T @ vectors / np.sqrt(np.maximum(values, _TIE)))


def _symmetric_root(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    values, vectors = eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)


def _own_side_is_nearer(within: npt.NDArray[np.float64], across: npt.NDArray[np.float64]) -> float:
    """Count the rows whose nearest neighbour, themselves left out, is on their own side; a tie counts one half."""
    others = within.copy()
    np.fill_diagonal(others, np.inf)
    gap = across.min(1) - others.min(1)
    return float((gap > _TIE).sum() + 0.5 * (np.abs(gap) <= _TIE).sum())

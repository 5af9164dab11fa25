"""The mean of importance weights, and an error of its logarithm that says so when it cannot be known.

Weights of annealed chains are heavy-tailed: where a few of many decide the mean, the usual error (delta method) is far
too small. Here the error is a bootstrap's, widened by the tail's shape k, and it is None where k or the effective
number of weights says that the sample does not tell. k is the shape of a generalized Pareto distribution fit to the
largest weights: moments of order 1/k and above are infinite.

Source: Kong 1992 (effective sample size); Zhang & Stephens 2009 (fit of k); Vehtari, Simpson, Gelman, Yao & Gabry 2024
(its use for importance weights, and the number of weights that a k asks for). Weights are given by their logarithms.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_FEWEST_EFFECTIVE = 10
_NARROW = 0.5  # weights whose logarithms spread less than this have a mean that is known, whatever their largest are
_LARGEST_K = 0.7
_NUM_RESAMPLES, _BOOTSTRAP_SEED = 200, 0
_SHORTEST_TAIL = 5

Array = npt.NDArray[np.float64]


def log_mean(log_weights: Tensor) -> float:
    """Return the logarithm of the mean of weights (N,), some of which may be 0."""
    return float(torch.logsumexp(log_weights, 0)) - math.log(len(log_weights))


def effective_sample_size(log_weights: Tensor) -> float:
    """Return the number (Σ w)²/Σ w² of equal weights that weights (N,) are worth."""
    return math.exp(2 * float(torch.logsumexp(log_weights, 0)) - float(torch.logsumexp(2 * log_weights, 0)))


def log_mean_std_error(log_weights: Tensor) -> float | None:
    """Return the standard error of `log_mean` of independent weights (N,), or None if they do not tell it.

    It is the bootstrap's divided by 1 − max(0, k). None stands for fewer than 10 effective weights, for a k of
    min(1 − 1/log₁₀ N, 0.7) and above, and for weights that are not finite.
    """
    found = log_weights.double().cpu().numpy()
    if len(found) < 2 or np.isnan(found).any() or not np.isfinite(found.max()):
        return None
    k = 0.0
    if not (np.isfinite(found.min()) and found.std() <= _NARROW):
        k = pareto_k(log_weights)
        largest_k = min(1 - 1 / math.log10(len(found)), _LARGEST_K)
        if effective_sample_size(log_weights) < _FEWEST_EFFECTIVE or k >= largest_k:
            return None
    return _bootstrap(np.exp(found - found.max())) / (1 - max(0.0, k))


def pareto_k(log_weights: Tensor) -> float:
    """Return the shape k of the tail of weights (N,): ∞ if fewer than 5 make it up, −∞ if they are all the same."""
    positive = log_weights[log_weights > -math.inf].double().cpu().numpy()
    length = int(min(len(positive) / 5, 3 * math.sqrt(len(positive))))
    if length < _SHORTEST_TAIL:
        return math.inf
    weights = np.exp(np.sort(positive)[-length - 1 :] - positive.max())
    excess = weights[1:] - weights[0]
    if excess[-1] <= 1e-12:
        return -math.inf
    excess = excess[excess > 0]
    return _fitted_k(excess) if len(excess) >= _SHORTEST_TAIL else math.inf


def _fitted_k(excess: Array) -> float:
    """Return the shape of the generalized Pareto distribution of `excess` (n,), which is positive and ascending.

    It is the posterior mean of Zhang & Stephens, drawn to 1/2 with the weight of ten further values.
    """
    n = len(excess)
    grid = np.arange(1, 31 + math.isqrt(n)) - 0.5
    inverse_scale = (1 - np.sqrt(len(grid) / grid)) / (3 * excess[int(n / 4 + 0.5) - 1]) + 1 / excess[-1]
    inverse_scale = inverse_scale[inverse_scale != 0]  # where the likelihood has no formula, only a limit
    k = np.log1p(-inverse_scale[:, None] * excess).mean(1)
    log_likelihood = n * (np.log(-inverse_scale / k) - k - 1)
    posterior = np.exp(log_likelihood - log_likelihood.max())
    mean = (posterior * inverse_scale).sum() / posterior.sum()
    return float((n * np.log1p(-mean * excess).mean() + 10 * 0.5) / (n + 10))


def _bootstrap(weights: Array) -> float:
    """Return the standard deviation of the log of the mean over resamples of `weights` (N,), always the same ones."""
    rng, count = np.random.default_rng(_BOOTSTRAP_SEED), len(weights)
    means = [weights[rng.integers(count, size=count)].mean() for _ in range(_NUM_RESAMPLES)]
    return float(np.log(np.maximum(means, np.finfo(np.float64).tiny)).std(ddof=1))

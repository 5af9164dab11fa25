"""The same training time spent in three ways on the digits, and what each way does to samples and to densities.

Score matching alone, the preset's mixture, and recovery likelihood from early on: the numbers of steps are those that
took the same CPU time. Beside the samples' figures stand those that recovery likelihood could mend: the log density
along paths through the levels, which is the sum of the conditional likelihoods that it maximizes; how far long chains
drift from the data on the conditionals, and on the energy of level 0 without a tether; and how well that energy tells
other pictures from digits.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from model import data, presets
from model.chains.diagnostics import run_long
from model.chains.kernels import KERNELS
from model.chains.sampling import sample
from model.conditions import At
from model.config import SamplingConfig, TrainConfig
from model.data.datasets import Dataset
from model.densities.calibration import continuous
from model.densities.density import data_energy, path_log_density
from model.energies.energy_model import EnergyModel
from model.evaluation import frechet_distance, nearest_neighbour_accuracy
from model.noise import SharedNoise, make_generator
from model.schedule import expand
from tests.bench.trainings import load_trained, train_all, training_s

SEEDS = (0, 1)
NUM_SAMPLES = 800
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "mirrored": lambda x: x.flip(3),
    "means_of_two": lambda x: (x + x.roll(1, 0)) / 2,
}
"""The pictures that are no digits, made of digits, which the energy of level 0 is to tell from them."""
_SAMPLING = SamplingConfig(start="multistep", num_steps=2, denoise=True)
_EARLY_RATE = 1e-3
_PATHS, _INNER, _ON_PATHS = 4, 16, 300
_LONG_STEPS, _LONG_CHAINS = 200, 128
_NUM_CONDITIONALS = 24


def ways(seed: int) -> dict[str, TrainConfig]:
    """Return the three configurations of `seed`, by the keys of the results."""
    preset = replace(presets.preset("digits"), seed=seed)
    return {
        "score_matching": _split(preset, 6900, 0),
        "preset": preset,
        "recovery_early": replace(
            _split(preset, 500, 1065), optimizer=replace(preset.optimizer, learning_rate=_EARLY_RATE)
        ),
    }


def _split(config: TrainConfig, matching: int, recovery: int) -> TrainConfig:
    return replace(config, score_matching=replace(config.score_matching, steps=matching), steps=matching + recovery)


def measure(tell_fn: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of each way, means over the seeds, and those of every seed."""
    train_all({_name(way, seed): config for seed in SEEDS for way, config in ways(seed).items()}, tell_fn)
    digits = data.load("digits")
    results = {}
    for way in ways(0):
        found = []
        for seed in SEEDS:
            figures = {"cpu_s": training_s(_name(way, seed))} | judged(load_trained(_name(way, seed)), digits)
            tell_fn(f"{way}, seed {seed}: {figures}")
            found.append(figures)
        results[way] = {key: statistics.fmean(one[key] for one in found) for key in found[0]} | {"seeds": found}
    return results


def _name(way: str, seed: int) -> str:
    return f"digits-digits-{seed}" if way == "preset" else f"digits-{way}-{seed}"


def judged(model: EnergyModel, digits: Dataset) -> dict[str, float]:
    """Return the figures of one model."""
    model.config = replace(model.config, sampling=_SAMPLING)
    held_out, drawn = digits.held_out[:].numpy(), sample(model, NUM_SAMPLES, seed=5).x.numpy()
    x_data = continuous(digits, digits.held_out)
    paths = path_log_density(model, x_data[:_ON_PATHS], seed=0, num_paths=_PATHS, num_inner=_INNER)
    long_runs = run_long(model, model.space.encode(x_data[:_NUM_CONDITIONALS]), num_steps=_LONG_STEPS, seed=0)
    energy = data_energy(model, x_data)
    return {
        "frechet": frechet_distance(held_out, drawn),
        "one_nn": nearest_neighbour_accuracy(held_out, drawn),
        "path_log_density": float(paths.log_density.mean()),
        "path_spread": float(paths.spread.mean()),
        "conditional_drift": min(one.energy_drift for one in long_runs),
        "free_drift": _free_drift(model, x_data[:_LONG_CHAINS]),
    } | {
        f"auroc_{name}": float(roc_auc_score(_is_other(energy, other), torch.cat([energy, other])))
        for name, other in ((name, data_energy(model, change_fn(x_data))) for name, change_fn in OTHERS.items())
    }


def _is_other(energy: Tensor, other: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(energy), torch.ones_like(other)])


def _free_drift(model: EnergyModel, x_data: Tensor) -> float:
    """Return by how many nats E_0 falls, on average, on Metropolis chains without a tether that start from data."""
    noise, kernel = SharedNoise(make_generator(0)), KERNELS["mala"]
    at = At.same(0, x_data)
    x = model.schedule.diffuse(model.space.encode(x_data), at.level, noise.normal(x_data))
    target, step_size = model.marginal(at), model.step_size[at.level]
    with model.frozen():
        first = state = kernel.init(expand(model.schedule.scale[at.level], x) * x, target)
        for _ in range(_LONG_STEPS):
            state, _ = kernel.step(state, target, step_size, noise)
    return float((state.energy - first.energy).mean())

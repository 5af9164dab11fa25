"""A model of digits with their labels: whether its samples are what was asked for, and how well it classifies.

The judge is a support vector machine that was fit to the training digits and knows nothing of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from model import data, presets
from model.chains.sampling import sample
from model.config import SamplingConfig, TrainConfig
from model.data.datasets import Dataset
from model.densities.classification import classify
from model.energies.energy_model import EnergyModel
from model.evaluation import frechet_distance, nearest_neighbour_accuracy, rows
from model.noise import SharedNoise, make_generator
from tests.bench.composition import Judge, composition, digits_judge
from tests.bench.trainings import load_trained, train_all

NAME = "conditional-digits"
NUM_SAMPLES = 800
SEED = 5
_GUIDANCE = (0.0, 0.5, 1.0)
_NOISE_STDS = (0.0, 0.3, 0.6, 1.0)


def config() -> TrainConfig:
    """Return the preset `digits` with labels, in 60 % of its steps, and with samples of few evaluations."""
    shorter = presets.override(presets.preset("digits"), steps=2900, conditional=True)
    return replace(shorter, sampling=SamplingConfig(start="multistep", num_steps=2, denoise=True))


def in_turn(num_samples: int = NUM_SAMPLES) -> list[int]:
    """Return the labels that are asked for: every digit in turn."""
    return [index % 10 for index in range(num_samples)]


def measure(tell_fn: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of samples by their guidance, and those of classification by the noise of the data."""
    train_all({NAME: config()}, tell_fn)
    model, digits = load_trained(NAME), data.load("digits")
    judge, judge_accuracy = digits_judge()
    results: dict[str, Any] = {"judge_accuracy": judge_accuracy}
    for guidance in _GUIDANCE:
        drawn = sample(model, NUM_SAMPLES, seed=SEED, labels=in_turn(), guidance=guidance)
        found = figures_of(drawn.x.numpy(), digits, judge) | {"evaluations": drawn.gradient_evaluations}
        results |= {f"{name}_{_told(guidance)}": value for name, value in found.items()}
        tell_fn(f"guidance {guidance:g}: {found}")
    by_noise = [_classification(model, digits, judge, noise_std) for noise_std in _NOISE_STDS]
    tell_fn(f"classification: {by_noise}")
    return results | {"classify_accuracy": by_noise[0]["accuracy"], "classification": by_noise}


def _told(guidance: float) -> str:
    return f"{guidance:g}".replace(".", "")


def measure_composition(tell_fn: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of compositions of labels (`tests.bench.composition`) of the same model."""
    train_all({NAME: config()}, tell_fn)
    judge, judge_accuracy = digits_judge()
    found = composition(load_trained(NAME), judge)
    for name, figures in found.items():
        tell_fn(f"{name}: {figures}")
    return {"judge_accuracy": judge_accuracy} | found


def figures_of(drawn: npt.NDArray[np.float32], digits: Dataset, judge: Judge) -> dict[str, float]:
    """Return how near samples (N, 1, 8, 8), asked for by `in_turn`, come to held-out digits and to what was asked."""
    real = digits.held_out[:].numpy()
    return {
        "agreement": float(np.mean(judge.predict(rows(drawn)) == in_turn())),
        "frechet": frechet_distance(real, drawn),
        "one_nn": nearest_neighbour_accuracy(real, drawn),
    }


def _classification(model: EnergyModel, digits: Dataset, judge: Judge, noise_std: float) -> dict[str, float]:
    assert digits.labels is not None
    real, labels, noise = digits.held_out[:], digits.labels.held_out, SharedNoise(make_generator(0))
    noisy = real + noise_std * noise.normal(real)
    ours = classify(model, noisy, noise_std=noise_std).argmax(1)
    return {
        "noise_std": noise_std,
        "accuracy": float((ours == labels).float().mean()),
        "judge": float(np.mean(judge.predict(rows(noisy.numpy())) == labels.numpy())),
    }

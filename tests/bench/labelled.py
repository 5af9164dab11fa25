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
from tests.bench.trainings import load_trained, train_all

NAME = "conditional-digits"
NUM_SAMPLES = 800
SEED = 5
_GUIDANCE = (0.0, 0.5, 1.0)
_NOISE_STDS = (0.0, 0.3, 0.6, 1.0)
JudgeFn = Callable[[npt.ArrayLike], npt.NDArray[np.int64]]


def config() -> TrainConfig:
    """Return the preset `digits` with labels, in 60 % of its steps, and with samples of few evaluations."""
    shorter = presets.override(presets.preset("digits"), steps=2900, conditional=True)
    return replace(shorter, sampling=SamplingConfig(start="multistep", num_steps=2, denoise=True))


def make_judge(digits: Dataset) -> tuple[JudgeFn, float]:
    """Return a judge, which gives the labels (N,) of digits (N, 1, 8, 8), and its accuracy on the held-out ones."""
    from sklearn.svm import SVC

    assert digits.labels is not None
    machine = SVC(C=10).fit(rows(digits.train.numpy()), digits.labels.train.numpy())

    def judge(events: npt.ArrayLike) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = machine.predict(rows(np.asarray(events)))
        return found

    return judge, float(np.mean(judge(digits.held_out.numpy()) == digits.labels.held_out.numpy()))


def in_turn(num_samples: int = NUM_SAMPLES) -> list[int]:
    """Return the labels that are asked for: every digit in turn."""
    return [index % 10 for index in range(num_samples)]


def measure(tell_fn: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of samples by their guidance, and those of classification by the noise of the data."""
    train_all({NAME: config()}, tell_fn)
    model, digits = load_trained(NAME), data.load("digits")
    judge, judge_accuracy = make_judge(digits)
    results: dict[str, Any] = {"judge_accuracy": judge_accuracy}
    for guidance in _GUIDANCE:
        found = _samples(model, digits, judge, guidance)
        results |= {f"{name}_{_told(guidance)}": value for name, value in found.items()}
        tell_fn(f"guidance {guidance:g}: {found}")
    by_noise = [_classification(model, digits, judge, noise_std) for noise_std in _NOISE_STDS]
    tell_fn(f"classification: {by_noise}")
    return results | {"classify_accuracy": by_noise[0]["accuracy"], "classification": by_noise}


def _told(guidance: float) -> str:
    return f"{guidance:g}".replace(".", "")


def _samples(model: EnergyModel, digits: Dataset, judge: JudgeFn, guidance: float) -> dict[str, float]:
    labels = in_turn()
    drawn = sample(model, NUM_SAMPLES, seed=SEED, labels=labels, guidance=guidance)
    real, generated = digits.held_out.numpy(), drawn.x.numpy()
    return {
        "agreement": float(np.mean(judge(generated) == labels)),
        "frechet": frechet_distance(real, generated),
        "one_nn": nearest_neighbour_accuracy(real, generated),
        "evaluations": drawn.gradient_evaluations,
    }


def _classification(model: EnergyModel, digits: Dataset, judge: JudgeFn, noise_std: float) -> dict[str, float]:
    assert digits.labels is not None
    noise, labels = SharedNoise(make_generator(0)), digits.labels.held_out
    noisy = digits.held_out + noise_std * noise.normal(digits.held_out)
    ours = classify(model, noisy, noise_std=noise_std).argmax(1)
    return {
        "noise_std": noise_std,
        "accuracy": float((ours == labels).float().mean()),
        "judge": float(np.mean(judge(noisy.numpy()) == labels.numpy())),
    }

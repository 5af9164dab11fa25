"""Measures what compositions of labels draw: `python -m tests.bench.composition` trains a model of digits and labels.

A judge that knows the digits names samples that were asked to be "3 or 5", a mixture, and "8 but not 0", a product. A
logistic regression tells how much more they look like an 8 than like a 0. Chains with a Metropolis test stand beside
chains without one, from the same seeds, at the same number of steps. `--model FOLDER` takes a checkpoint that is there
already; the figures are printed and written to bench-results/composition.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from model import data
from model.chains.sampling import sample
from model.checkpoints.checkpoint import load_model
from model.composition import Composition
from model.energies.energy_model import EnergyModel
from model.evaluation import frechet_distance, rows
from model.events import CheckpointEvent
from model.presets import preset
from model.training.loop import train

_RESULTS = Path("bench-results/composition.json")
_COUNT = 400
_STEPS = (4,)
_SEED = 0


class Judge(Protocol):
    """Whoever names the digits of flattened pictures (N, D)."""

    def predict(self, x: npt.NDArray[np.float64], /) -> npt.NDArray[np.int64]:
        """Return the digits (N,)."""


def composition(model: EnergyModel, judge: Judge) -> dict[str, Any]:
    """Return what the judge says of samples of both compositions, for chains of several lengths.

    The model's classes are the digits by name. `judge` names the digits of flattened pictures.
    """
    three, five, eight, zero = (model.class_names.index(name) for name in ("3", "5", "8", "0"))
    mixture = Composition(any_of=(three, five))
    product = Composition(all_of=((eight, 1.0), (zero, -0.3)))
    far = Composition(all_of=((eight, 1.0), (zero, -1.0)))
    found: dict[str, Any] = {"eight": _told(model, judge, Composition.of_label(eight), True, _STEPS[-1])}
    for name, asked in (("three_or_five", mixture), ("eight_not_zero", product), ("eight_far_from_zero", far)):
        for steps in _STEPS:
            for kind, adjusted in (("adjusted", True), ("unadjusted", False)):
                found[f"{name}.{kind}.{steps}"] = _told(model, judge, asked, adjusted, steps)
    return found


def _told(model: EnergyModel, judge: Judge, asked: Composition, adjusted: bool, num_steps: int) -> dict[str, float]:
    drawn = sample(model, _COUNT, seed=_SEED, num_steps=num_steps, labels=[asked] * _COUNT, adjusted=adjusted)
    x = np.nan_to_num(drawn.x.numpy())
    judged = judge.predict(rows(x))
    wanted = [*asked.any_of, *(label for label, weight in asked.all_of if weight > 0)]
    return {
        **{f"share_{digit}": float(np.mean(judged == digit)) for digit in (0, 3, 5, 8)},
        "log_odds_8_over_0": float(_eight_over_zero().decision_function(rows(x)).mean()),
        "frechet_to_wanted": frechet_distance(_digits(wanted, held_out=True), x),
        "largest_value": float(np.abs(x).max()),
        "evaluations": drawn.gradient_evaluations,
    }


def _digits(wanted: Sequence[int], *, held_out: bool) -> npt.NDArray[np.float32]:
    """Return the digits of these classes."""
    dataset = data.load("digits")
    assert dataset.labels is not None
    x, labels = (dataset.held_out, dataset.labels.held_out) if held_out else (dataset.train, dataset.labels.train)
    found: npt.NDArray[np.float32] = x[:][np.isin(labels.numpy(), wanted)].numpy()
    return found


@cache
def _eight_over_zero() -> LogisticRegression:
    """Return what tells the log-odds of an eight over a zero."""
    zeros, eights = (rows(_digits([digit], held_out=False)) for digit in (0, 8))
    labels = np.repeat([0, 1], [len(zeros), len(eights)])
    return LogisticRegression(C=0.1, max_iter=5000).fit(np.concatenate([zeros, eights]), labels)


def digits_judge() -> tuple[SVC, float]:
    """Return a judge trained on the training digits, and the share of the held-out digits that it names rightly."""
    dataset = data.load("digits")
    assert dataset.labels is not None
    judge = SVC(C=10)
    judge.fit(rows(dataset.train[:].numpy()), dataset.labels.train.numpy())
    right: npt.NDArray[np.bool_] = judge.predict(rows(dataset.held_out[:].numpy())) == dataset.labels.held_out.numpy()
    return judge, float(right.mean())


def train_digits(folder: Path) -> None:
    """Train the preset's model of the digits with their labels, and leave its last checkpoint in `folder`."""
    config = replace(preset("digits"), conditional=True)
    for event in train(config, data.load("digits")):
        if isinstance(event, CheckpointEvent):
            folder.mkdir(parents=True, exist_ok=True)
            event.write(folder)


def main() -> None:
    """Train unless there is a checkpoint, measure, print and write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, default=_RESULTS.parent / "conditional-digits", help="of the checkpoint")
    folder = parser.parse_args().model
    if not folder.exists():
        train_digits(folder)
    judge, accuracy = digits_judge()
    found = {"judge_accuracy": accuracy, **composition(load_model(folder), judge)}
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.write_text(json.dumps(found, indent=1))
    Console().print_json(data=found)


if __name__ == "__main__":
    main()

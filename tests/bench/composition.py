"""Measures what compositions of labels draw: `python -m tests.bench.composition` trains a model of digits and labels.

A judge that knows the digits tells of samples that were asked to be "3 or 5", a mixture, and "8 but not 0", a product:
which digits they are, and how much they look like each. Chains with a Metropolis test stand beside chains without one,
from the same seeds, at the same number of steps. `--model FOLDER` takes a checkpoint that is there already; the figures
are printed and written to bench-results/composition.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
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
_STEPS = (4, 20)
_SEED = 0


def composition(model: EnergyModel, judge: SVC) -> dict[str, Any]:
    """Return what the judge says of samples of both compositions, for chains of several lengths.

    The model's class k is the digit k. `judge` takes flattened digits and tells probabilities.
    """
    three, five, eight, zero = (model.class_names.index(name) for name in ("3", "5", "8", "0"))
    mixture = Composition(any_of=(three, five))
    product = Composition(all_of=((eight, 1.0), (zero, -1.0)))
    found: dict[str, Any] = {"eight": _told(model, judge, Composition.of_label(eight), None, 20)}
    for name, asked in (("three_or_five", mixture), ("eight_not_zero", product)):
        for steps in _STEPS:
            for kind, adjusted in (("adjusted", True), ("unadjusted", False)):
                found[f"{name}.{kind}.{steps}"] = _told(model, judge, asked, adjusted, steps)
    return found


def _told(
    model: EnergyModel, judge: SVC, asked: Composition, adjusted: bool | None, num_steps: int
) -> dict[str, float]:
    drawn = sample(model, _COUNT, seed=_SEED, num_steps=num_steps, labels=[asked] * _COUNT, adjusted=adjusted)
    x = np.nan_to_num(drawn.x.numpy())
    probabilities = judge.predict_proba(rows(x))
    judged = probabilities.argmax(1)
    shares = {f"share_{digit}": float(np.mean(judged == digit)) for digit in (0, 3, 5, 8)}
    labels = data.load("digits").labels
    assert labels is not None
    wanted = [*asked.any_of, *(label for label, weight in asked.all_of if weight > 0)]
    real = data.load("digits").held_out[np.isin(labels.held_out.numpy(), wanted)].numpy()
    return {
        **shares,
        "probability_0": float(probabilities[:, 0].mean()),
        "frechet": frechet_distance(real, x),
        "largest_value": float(np.abs(x).max()),
        "evaluations": drawn.gradient_evaluations,
    }


def digits_judge() -> tuple[SVC, float]:
    """Return a judge trained on the training digits, and the share of the held-out digits that it names rightly."""
    dataset = data.load("digits")
    assert dataset.labels is not None
    judge = SVC(C=10, probability=True, random_state=0)
    judge.fit(rows(dataset.train.numpy()), dataset.labels.train.numpy())
    right: npt.NDArray[np.bool_] = judge.predict(rows(dataset.held_out.numpy())) == dataset.labels.held_out.numpy()
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

"""Judges trainings of real pictures: `mnist5k` and `photo_crops` train as the preset `images` does, and compare.

The digits are judged in the features of a small classifier, by their Fréchet distance to held-out digits and by the
accuracy of a nearest neighbour that tells the two apart; crops of photographs by the same in their `texture`. Beside
the model stand the same time of score matching alone and mixtures of Gaussians. `python -m tests.bench.pictures` trains
all of them one after another, prints the figures and draws the samples into bench-results/.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from model import data
from model.chains.sampling import sample
from model.checkpoints.checkpoint import load_model
from model.data.augmentation import jittered
from model.data.dataset import Dataset
from model.data.datasets import summary_of
from model.energies.energy_model import EnergyModel
from model.evaluation import frechet_distance, nearest_neighbour_accuracy, sample_gaussian
from model.event_kinds import pixels
from model.events import CheckpointEvent
from model.noise import SharedNoise, make_generator
from model.planning import Machine, fit, plan
from model.training.loop import train
from model.training.pace import measure_pace

Array = npt.NDArray[np.float32]
FeaturesFn = Callable[[Array], Array]
_FOLDER = Path("bench-results")
_NUM_SAMPLES = 1000
_MEASURED_SHARE = 0.03
_JUDGE_STEPS, _JUDGE_BATCH = 2200, 64
_NUM_FEATURES = 32


class Judge(nn.Module):
    """A small classifier of digits, whose last hidden layer gives the features in which pictures are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 7 * 7, _NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(_NUM_FEATURES, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.trunk(x))
        return scores

    @torch.no_grad()
    def features(self, x: Array) -> Array:
        """Return the features (N, F) of pictures (N, 1, 28, 28)."""
        found: Array = self.trunk(torch.from_numpy(np.asarray(x, np.float32))).numpy()
        return found


def train_judge(digits: Dataset) -> tuple[Judge, float]:
    """Return a judge trained on the training digits, and its accuracy on the held-out ones."""
    assert digits.labels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Judge()
        noise, generator = SharedNoise(make_generator(0)), make_generator(1)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, _JUDGE_STEPS)
        for _ in range(_JUDGE_STEPS):
            rows = torch.randint(len(digits.train), (_JUDGE_BATCH,), generator=generator)
            moved = jittered(digits.train[rows], 1.2, noise)
            loss = F.cross_entropy(judge(moved), digits.labels.train[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    judge.eval()
    with torch.no_grad():
        accuracy = float((judge(digits.held_out).argmax(1) == digits.labels.held_out).float().mean())
    return judge, accuracy


def mnist5k(minutes: float) -> dict[str, Any]:
    """Train on the digits twice for `minutes`, and return the figures of both models and of a mixture of Gaussians."""
    digits = data.load("mnist5k")
    judge, accuracy = train_judge(digits)
    found = compared(digits, minutes, judge.features)
    return {"judge_accuracy": accuracy, **found}


def photo_crops(minutes: float) -> dict[str, Any]:
    """Train on the crops twice for `minutes`, and return the figures of both models, a Gaussian and a mixture."""
    crops = data.load("photo-crops")
    found = compared(crops, minutes, texture)
    gaussian = sample_gaussian(crops.train[:].numpy(), _NUM_SAMPLES, seed=0).clip(-1, 1)
    return {**found, "gaussian": figures(crops.held_out[:].numpy(), gaussian, texture)}


def texture(x: Array) -> Array:
    """Return (N, 12) how strong each crop's detail is at three scales in three directions, and its colours' spread.

    They are logarithms of mean absolute Haar responses of the grey picture, and of the channels' standard deviations.
    Crops of photographs are flat or busy, each in its own way; of a Gaussian of the same covariance all are alike.
    """
    grey = torch.from_numpy(np.asarray(x, np.float32)).mean(1, keepdim=True)
    found = []
    for _ in range(3):
        a, b, c, d = (grey[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
        found += [(a + b - c - d).abs(), (a - b + c - d).abs(), (a - b - c + d).abs()]
        grey = (a + b + c + d) / 4
    details = torch.stack([one.flatten(1).mean(1) for one in found], dim=1)
    spread = torch.from_numpy(np.asarray(x, np.float32)).flatten(2).std(2)
    features: Array = (torch.cat([details, spread], dim=1) + 0.01).log().numpy()
    return features


def compared(dataset: Dataset, minutes: float, features_fn: FeaturesFn) -> dict[str, Any]:
    """Return the figures of the plan, of as much time of score matching alone, of a mixture, and of training data."""
    held_out = dataset.held_out[:].numpy()
    found: dict[str, Any] = {}
    for name, recovery_share in (("model", None), ("score_matching", 0.0)):
        trained = train_planned(dataset, minutes, recovery_share)
        samples = drawn(trained.model)
        draw_sheet(f"{dataset.name}-{name}", samples)
        found[name] = {**figures(held_out, samples, features_fn), **trained.told}
    mixture, num_components = best_mixture(dataset)
    found["mixture"] = {**figures(held_out, mixture, features_fn), "num_components": num_components}
    found["training_data"] = figures(held_out, dataset.train[:_NUM_SAMPLES].numpy(), features_fn)
    return found


@dataclass(frozen=True)
class Trained:
    """A model, and what its training took."""

    model: EnergyModel
    told: dict[str, float]


def train_planned(dataset: Dataset, minutes: float, recovery_share: float | None) -> Trained:
    """Train for `minutes` as the preset `images` does, or with another share of recovery likelihood."""
    begun, cpu_begun = time.monotonic(), time.process_time()
    machine = Machine(device="cpu", num_threads=torch.get_num_threads())
    config = plan(summary_of(dataset), machine, dataset.name).config
    step_s = measure_pace(config, dataset, seconds=_MEASURED_SHARE * 60 * minutes)
    config = fit(config, step_s, 60 * minutes - (time.monotonic() - begun), recovery_share)
    config = replace(config, num_preview_samples=16)
    with tempfile.TemporaryDirectory() as directory:
        for event in train(config, dataset):
            if isinstance(event, CheckpointEvent) and event.step == config.steps:
                event.write(Path(directory))
        model = load_model(Path(directory))
    told = {
        "steps": config.steps,
        "score_matching_steps": config.score_matching.steps,
        "minutes": (time.monotonic() - begun) / 60,
        "cpu_minutes": (time.process_time() - cpu_begun) / 60,
    }
    return Trained(model, told)


def drawn(model: EnergyModel) -> Array:
    """Draw samples as the model does by default; of a conditional one, every class in turn."""
    num_classes = len(model.class_names)
    labels = [index % num_classes for index in range(_NUM_SAMPLES)] if num_classes else None
    samples: Array = sample(model, _NUM_SAMPLES, seed=1, labels=labels).x.numpy()
    return samples


def figures(held_out: Array, samples: Array, features_fn: FeaturesFn) -> dict[str, float]:
    """Return the Fréchet distance and the 1-NN accuracy of samples beside held-out data, in features."""
    real, generated = features_fn(held_out), features_fn(samples)
    return {
        "frechet": frechet_distance(real, generated),
        "one_nn": nearest_neighbour_accuracy(real, generated),
    }


def best_mixture(dataset: Dataset) -> tuple[Array, int]:
    """Draw from the mixture of Gaussians, of 1 to 100 components in PCA space, that a validation set finds likeliest.

    A fifth of the training data chooses the number; the mixture is then fit to all of them.
    """
    flat = dataset.train[:].flatten(1).numpy()
    pca = PCA(0.95, random_state=0).fit(flat)
    coded = pca.transform(flat)
    cut = len(coded) * 4 // 5

    def fitted(rows: npt.NDArray[Any], count: int) -> GaussianMixture:
        return GaussianMixture(count, reg_covar=1e-3, random_state=0, max_iter=50).fit(rows)

    chosen = max((1, 2, 5, 10, 20, 50, 100), key=lambda count: fitted(coded[:cut], count).score(coded[cut:]))
    codes, _ = fitted(coded, chosen).sample(_NUM_SAMPLES)
    codes = np.random.default_rng(0).permutation(codes)  # they come sorted by component
    samples = pca.inverse_transform(codes).reshape(-1, *dataset.event_shape).clip(-1, 1)
    return samples.astype(np.float32), chosen


def draw_sheet(name: str, samples: Array) -> None:
    """Draw the first hundred samples, enlarged, as a picture in bench-results."""
    _FOLDER.mkdir(exist_ok=True)
    (_FOLDER / f"{name}.png").write_bytes(pixels.encode_png(pixels.sheet(samples[:100]), scale=2))


def main() -> None:
    """Run both, for the minutes that the command line names, 15 by default, and write bench-results/pictures.json."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 15.0
    found = {"mnist5k": mnist5k(minutes), "photo_crops": photo_crops(minutes), "minutes": minutes}
    _FOLDER.mkdir(exist_ok=True)
    (_FOLDER / "pictures.json").write_text(json.dumps(found, indent=2))
    Console().print_json(data=found)


if __name__ == "__main__":
    main()

"""The demonstration's figures and pictures, which compare its samples with held-out digits and with simple models.

Torch (by way of the dataset) and matplotlib are imported inside the functions that need them, so that no command but
the demonstration loads them.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group, RenderableType
from rich.table import Table

from service.client import Job
from service.work.images import encode_grid

FloatArray = npt.NDArray[np.float32]
Event = Mapping[str, Any]

REFERENCE_SEED = 0
NUM_COMPONENTS = 10
_PACKAGES = ("recovery-likelihood", "torch", "numpy", "scipy", "scikit-learn", "fastapi", "celery", "redis", "boto3")
_PICTURES = {
    "samples.png": "64 samples",
    "real.png": "64 held-out digits",
    "progressive.png": "from noise to digit, level by level",
    "training.png": "loss, energies and displacement while training",
}


def evaluate(samples: FloatArray, real_picture: Path, *, scale: int) -> dict[str, Any]:
    """Return the figures of the samples and of the reference models, and draw 64 real digits to `real_picture`."""
    from model.data.datasets import load

    digits = load("digits")
    train, held_out = digits.train[:].numpy(), digits.held_out[:].numpy()
    real_picture.write_bytes(encode_grid(held_out[:64], scale=scale, num_columns=8))
    return {
        "samples": {**_closeness(held_out, samples), **_content(train, held_out, samples)},
        "references": _references(train, held_out, len(samples)),
        "data": {"dataset": "digits", "num_train": len(train), "num_held_out": len(held_out)},
    }


def _closeness(held_out: FloatArray, events: FloatArray) -> dict[str, float]:
    from model import evaluation

    return {
        "frechet_distance": round(evaluation.frechet_distance(held_out, events), 4),
        "nearest_neighbour_accuracy": round(evaluation.nearest_neighbour_accuracy(held_out, events), 4),
    }


def _content(train: FloatArray, held_out: FloatArray, samples: FloatArray) -> dict[str, Any]:
    from model import evaluation

    shares = evaluation.class_shares(train, _labels(train), samples)
    copies = evaluation.copy_test(samples, train, held_out)
    return {
        "count": len(samples),
        "class_shares": {str(label): round(share, 4) for label, share in shares.items()},
        "distance_to_nearest_training_digit": {name: round(value, 4) for name, value in vars(copies).items()},
    }


def _references(train: FloatArray, held_out: FloatArray, count: int) -> dict[str, dict[str, float]]:
    """Return the same two figures for real training digits, and for simple models clipped to the data's range."""
    from model import evaluation

    gaussian = evaluation.sample_gaussian(train, count, seed=REFERENCE_SEED)
    mixture = evaluation.sample_mixture(train, count, num_components=NUM_COMPONENTS, seed=REFERENCE_SEED)
    return {
        "training_digits": _closeness(held_out, train),
        f"gaussian_mixture_{NUM_COMPONENTS}": _closeness(held_out, mixture.clip(-1, 1)),
        "single_gaussian": _closeness(held_out, gaussian.clip(-1, 1)),
    }


def _labels(images: FloatArray) -> npt.NDArray[np.int64]:
    """Return the digit that each image shows.

    It is found by the image's pixels, because the model's training data have no labels.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    known = {image.tobytes(): label for image, label in zip(_grey(digits.images / 8 - 1), digits.target, strict=True)}
    return np.array([known[image.tobytes()] for image in _grey(images[:, 0])])


def _grey(images: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    values: npt.NDArray[np.floating] = np.rint((images + 1) * 8)
    return values.astype(np.uint8)


def describe_training(job: Job) -> dict[str, Any]:
    """Return the part of the report about the training job."""
    assert job.started_at is not None
    assert job.finished_at is not None
    config = job.config or {}
    return {
        "job_id": job.id,
        "model_id": job.model_id,
        "seed": job.seed,
        "steps": config["steps"],
        "last_loss": job.last_loss,
        "seconds": round((job.finished_at - job.started_at).total_seconds(), 2),
        "config": config,
    }


def versions() -> dict[str, str]:
    """Return the machine, and the versions of the packages, that the figures depend on."""
    found = {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "checkout"
    return found


def draw_training(events: Sequence[Event], path: Path) -> None:
    """Draw, against the step, the losses of both phases and, per level, energies, acceptance and displacement."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    steps = [event["data"] for event in events if event["type"] == "step"]
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 8), layout="constrained")
    _draw_loss(axes[0, 0], steps, "score_matching")
    _draw_loss(axes[0, 1], steps, "recovery")
    _draw_levels(axes[0, 2], steps, "acceptance_rate", "acceptance rate of the chain")
    _draw_levels(axes[1, 0], steps, "positive_energy", "energy of data, nats")
    _draw_levels(axes[1, 1], steps, "negative_energy", "energy of samples, nats")
    _draw_levels(axes[1, 2], steps, "displacement", "displacement of the chain, data units")
    figure.suptitle("by level: dark is the cleanest, light the noisiest")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _draw_loss(axes: Any, steps: Sequence[Event], phase: str) -> None:
    points = [(data["step"], data["loss"]) for data in steps if data["phase"] == phase and data["loss"] is not None]
    if points:
        axes.plot(*zip(*points, strict=True))
    axes.set(title=f"loss, {phase.replace('_', ' ')}", xlabel="step")


def _draw_levels(axes: Any, steps: Sequence[Event], name: str, title: str) -> None:
    """Draw a quantity with one line per level."""
    from matplotlib import colormaps

    num_levels = max((len(data.get(name) or []) for data in steps), default=0)
    for level in range(num_levels):
        points = [
            (data["step"], data[name][level]) for data in steps if data.get(name) and data[name][level] is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), color=colormaps["viridis"](level / num_levels), linewidth=0.8)
    axes.set(title=title, xlabel="step")


def table(report: Mapping[str, Any], out: Path) -> RenderableType:
    """Lay the report out as a table for people."""
    figures = Table(title="Samples against held-out digits", title_justify="left")
    for heading in ("", "Fréchet distance", "1-NN accuracy"):
        figures.add_column(heading, justify="left" if not heading else "right")
    rows = {"this model": report["samples"], **report["references"]}
    for name, row in rows.items():
        figures.add_row(
            name.replace("_", " "), f"{row['frechet_distance']:.3f}", f"{row['nearest_neighbour_accuracy']:.3f}"
        )
    samples, timings = report["samples"], report["timings_s"]
    shares = "  ".join(f"{label}: {100 * share:.1f} %" for label, share in samples["class_shares"].items())
    copies = samples["distance_to_nearest_training_digit"]
    lines = [
        f"classes        {shares}",
        f"nearest real   median distance {copies['generated_median']:.2f}, held-out digits "
        f"{copies['held_out_median']:.2f}; copies of training digits: {copies['copies']}",
        f"time           {timings['training']:.0f} s training, {timings['total']:.0f} s in all",
    ]
    pictures = [f"{out / name}  {text}" for name, text in _PICTURES.items()]
    return Group(figures, *lines, "", *pictures, f"{out / 'report.json'}  all figures", f"{out / 'samples.npy'}")


def show(report: Mapping[str, Any], out: Path, console: Console) -> None:
    """Print the report as a table."""
    console.print(table(report, out), highlight=False, soft_wrap=True)

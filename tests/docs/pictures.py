"""Draws pictures of docs/ from real trainings: `python -m tests.docs.pictures [FOLDER]`.

levels.png     two moons at several noise levels, above the density that one model has learnt of each
conditional.png  what a step down has to find: the energy of a level, and the same energy tethered to a noisy neighbour
curves.png     a healthy training and one that diverges, as their events tell it
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from model import data
from model.checkpoints.checkpoint import load_model
from model.conditions import At
from model.config import TrainConfig
from model.energies.energy_model import EnergyModel
from model.errors import DivergenceError
from model.events import CheckpointEvent, RollbackEvent, StepEvent
from model.presets import override, preset
from model.training.loop import train

LEVELS = (19, 14, 11, 8, 5, 0)
STEPS = 2500
_CELLS = 120
_REACH = 2.4
_DEPTH_NATS = 6.0


def main() -> None:
    """Train, and draw."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    torch.set_num_threads(1)
    config = override(preset("density-2d"), dataset="two_moons", steps=STEPS, calibrate=False, sample_every=10**6)
    dataset = data.load("two_moons")
    model = _trained(config, dataset)
    draw_levels(model, dataset.train[:4000], folder / "levels.png")
    draw_conditional(model, folder / "conditional.png")
    draw_curves(folder / "curves.png")


def _trained(config: TrainConfig, dataset: data.Dataset) -> EnergyModel:
    """The model of the last checkpoint."""
    with tempfile.TemporaryDirectory() as directory:
        for event in train(config, dataset):
            if isinstance(event, CheckpointEvent) and event.step == config.steps:
                event.write(Path(directory))
        return load_model(Path(directory))


def _grid() -> tuple[torch.Tensor, list[float]]:
    axis = torch.linspace(-_REACH, _REACH, _CELLS)
    columns, rows = torch.meshgrid(axis, axis, indexing="xy")
    return torch.stack([columns.flatten(), rows.flatten()], 1), [-_REACH, _REACH, -_REACH, _REACH]


def _energies(model: EnergyModel, x: torch.Tensor, level: int) -> torch.Tensor:
    """Of x = y / α, nats: (N,)."""
    y = x * model.schedule.scale[level]
    with torch.no_grad():
        return model.energy(y.float(), At.same(level, x))


def draw_levels(model: EnergyModel, points: torch.Tensor, path: Path) -> None:
    """Diffused data above learnt densities, noisiest first."""
    grid, extent = _grid()
    figure = Figure(figsize=(2 * len(LEVELS), 4.2), layout="constrained")
    axes = figure.subplots(2, len(LEVELS))
    generator = torch.Generator().manual_seed(0)
    for column, level in enumerate(LEVELS):
        levels = torch.full((len(points),), level)
        noisy = model.schedule.diffuse(points, levels, torch.randn(points.shape, generator=generator))
        axes[0, column].scatter(noisy[:, 0], noisy[:, 1], s=0.4, alpha=0.4, color="black")
        axes[0, column].set_title(f"level {level}")
        density = -_energies(model, grid, level).reshape(_CELLS, _CELLS)
        shown = (density - density.max()).clamp(min=-_DEPTH_NATS)
        axes[1, column].imshow(shown, extent=extent, origin="lower", cmap="magma")
    for axis in axes.flat:
        axis.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[], aspect="equal")
    axes[0, 0].set_ylabel("data and noise")
    axes[1, 0].set_ylabel("−energy of the model")
    figure.savefig(path, dpi=90)


def draw_conditional(model: EnergyModel, path: Path, level: int = 8) -> None:
    """Why a short chain is enough: the tether leaves one mode where the marginal has two."""
    grid, extent = _grid()
    x_next = torch.tensor([[-0.2, 0.4]])
    y = (grid * model.schedule.scale[level]).float()
    with torch.no_grad():
        energy_fn = model.conditional(x_next.expand(len(y), -1), At.same(level, y))
        tethered = -energy_fn(y).reshape(_CELLS, _CELLS)
    marginal = -_energies(model, grid, level).reshape(_CELLS, _CELLS)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    for axis, values, title in zip(
        figure.subplots(1, 2),
        (marginal, tethered),
        (f"level {level} by itself", "given one noisy neighbour (cross)"),
        strict=True,
    ):
        axis.imshow((values - values.max()).clamp(min=-_DEPTH_NATS), extent=extent, origin="lower", cmap="magma")
        axis.set(title=title, xticks=[], yticks=[])
    place = x_next[0] / model.schedule.scale[level]
    figure.axes[1].plot([place[0]], [place[1]], "x", color="cyan", markersize=9)
    figure.savefig(path, dpi=90)


def draw_curves(path: Path) -> None:
    """The same small recovery training with a step size that holds and with one that does not."""
    base = override(preset("digits"), steps=400)
    healthy = replace(base, log_every=5, sample_every=10**6, checkpoint_every=10**6)
    wild = replace(
        healthy,
        score_matching=replace(healthy.score_matching, steps=0),
        steps=200,
        chain=replace(healthy.chain, kernel="langevin", step_size=0.1, num_steps=10, start="neighbour"),
        optimizer=replace(healthy.optimizer, learning_rate=1e-2, warmup_steps=1),
        energy="step_size",
    )
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    for row, (name, config) in enumerate((("healthy", healthy), ("a step and a rate too large", wild))):
        steps, told = _events(config)
        number = [event.step for event in steps]
        axes[row, 0].plot(number, [event.loss for event in steps])
        axes[row, 0].set(title=f"loss: {name}", xlabel="step")
        for label, field in (("data", "positive_energy"), ("samples", "negative_energy")):
            values = [[np.nan if v is None else v for v in getattr(event, field)] for event in steps]
            axes[row, 1].plot(number, np.array(values, float)[:, 0], label=label)
        axes[row, 1].set(title="energy of level 0, nats" + (f" — {told}" if told else ""), xlabel="step")
        axes[row, 1].legend()
    figure.savefig(path, dpi=90)


def _events(config: TrainConfig) -> tuple[list[StepEvent], str]:
    """(its steps, how it ended if badly)."""
    steps: list[StepEvent] = []
    events: Any = train(config, data.load("digits"))
    try:
        for event in events:
            if isinstance(event, StepEvent):
                steps.append(event)
            if isinstance(event, RollbackEvent):
                return steps, f"diverged at step {event.step}"
    except DivergenceError as error:
        return steps, str(error)
    return steps, ""


if __name__ == "__main__":
    main()

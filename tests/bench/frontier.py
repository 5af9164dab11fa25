"""What a sample of the digits costs and how good it is: `python -m tests.bench.frontier`.

`digits_frontier` measures the settings of the sampler on trainings of several seeds; `engine_ratio` measures the
engine at the present default of a preset beside the former one, in one run. Both return plain dictionaries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from model import data, presets, training
from model.chains.sampling import sample
from model.checkpoints.checkpoint import load_model
from model.data.datasets import Dataset
from model.energies.energy_model import EnergyModel
from model.evaluation import Reference
from model.events import CheckpointEvent
from model.frontier import Point, Setting
from worker.engine.engine import Engine
from worker.queue.tasks import DrawOrder

_NEVER = 10**8
_GROUPS, _GROUP_SIZE = 4, 200
FORMER = Setting(start="neighbour", num_steps=20)
"""How the presets of small data drew samples by default before the start of second order."""
SETTINGS = (
    FORMER,
    Setting(start="neighbour", num_steps=10),
    Setting(start="predictor", num_steps=0),
    *(Setting(start="multistep", num_steps=num_steps) for num_steps in (0, 1, 2, 4, 8, 16)),
)
FEW_EVALUATIONS = 40
"""What a sample of the digits may cost at most."""


def trained(preset: str, dataset: str, seed: int, folder: Path) -> EnergyModel:
    """Return the model of a training, which is kept in `folder`, one for each seed."""
    place = folder / f"{preset}-{dataset}-{seed}"
    if not (place / "config.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        config = replace(
            presets.preset(preset), dataset=dataset, seed=seed, sample_every=_NEVER, checkpoint_every=_NEVER
        )
        for event in training.train(config, data.load(dataset)):
            if isinstance(event, CheckpointEvent):
                event.write(place)
    return load_model(place)


def measured(
    model: EnergyModel, dataset: Dataset, setting: Setting, *, groups: int = _GROUPS, group_size: int = _GROUP_SIZE
) -> Point:
    """Return what samples of one setting cost, and how near they come to the held-out data.

    Group `i` holds the first samples of the seed i + 1.
    """
    train, held_out = dataset.train[:].numpy(), dataset.held_out[:].numpy()
    reference = Reference(train, held_out, num_samples=groups * group_size)
    drawn = [sample(model, group_size, seed=1 + index, **asdict(setting)) for index in range(groups)]
    likeness = reference.compare([model.space.encode(one.x).numpy() for one in drawn])
    return Point(**asdict(setting), evaluations=drawn[0].gradient_evaluations, **asdict(likeness))


def frontier(preset: str, dataset: str, seeds: Iterable[int], folder: Path, settings: Sequence[Setting]) -> list[Any]:
    """Return the means over trainings, one for each of `seeds`, of every setting, and their standard errors."""
    loaded = data.load(dataset)
    models = [trained(preset, dataset, seed, folder) for seed in seeds]
    return [_mean(setting, [measured(model, loaded, setting) for model in models]) for setting in settings]


def digits_frontier(seeds: Sequence[int] = range(5), folder: Path | None = None) -> list[dict[str, Any]]:
    """Return [{setting, evaluations, frechet, one_nn, …}] of the preset `digits`, means over trainings."""
    if folder is not None:
        return frontier("digits", "digits", seeds, folder, SETTINGS)
    with tempfile.TemporaryDirectory() as temporary:
        return frontier("digits", "digits", seeds, Path(temporary), SETTINGS)


def _mean(setting: Setting, points: Sequence[Point]) -> dict[str, Any]:
    values = {name: [getattr(point, name) for point in points] for name in ("frechet", "one_nn")}
    means = {name: round(statistics.fmean(found), 4) for name, found in values.items()}
    errors = {
        f"{name}_error": round(statistics.stdev(found) / len(found) ** 0.5, 4) if len(found) > 1 else None
        for name, found in values.items()
    }
    told = f"{setting.start}, K = {setting.num_steps}"
    return {"setting": told, "evaluations": points[0].evaluations, **means, **errors, "num_models": len(points)}


def cheap_enough(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the best point of few evaluations, and by how much the best of all is better in each figure."""
    cheap = min((one for one in points if one["evaluations"] <= FEW_EVALUATIONS), key=lambda one: one["frechet"])
    behind = {name: round(cheap[name] - min(one[name] for one in points), 4) for name in ("frechet", "one_nn")}
    return {"setting": cheap["setting"], "evaluations": cheap["evaluations"], "behind": behind}


def engine_ratio(model: EnergyModel, *, rounds: int = 3, num_images: int = 256) -> dict[str, float]:
    """Return the engine's samples a second at the model's own settings and at the former ones, and their ratio.

    The two take turns, `rounds` times on the same engine; the median of each counts.
    """
    engine = Engine(lambda _: model)
    own = Setting(start=model.config.sampling.start, num_steps=model.config.sampling.num_steps)
    _rate(engine, own, num_images)  # the batch is measured here
    rates: dict[str, list[float]] = {"present": [], "former": []}
    for _ in range(rounds):
        rates["present"].append(_rate(engine, own, num_images))
        rates["former"].append(_rate(engine, FORMER, num_images))
    present, former = (statistics.median(found) for found in rates.values())
    return {"present": round(present, 2), "former": round(former, 2), "ratio": round(present / former, 2)}


def _rate(engine: Engine, setting: Setting, num_images: int) -> float:
    began_at = time.perf_counter()
    ticket = engine.draw("model", DrawOrder(num_images=num_images, seed=0, **asdict(setting)))
    while ticket.is_open:
        engine.step()
    ticket.future.result()
    return num_images / (time.perf_counter() - began_at)


def main() -> None:
    """Print the table, and what the digits cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/frontier-models"), help="of trained models")
    given = parser.parse_args()
    torch.set_num_threads(1)
    points = digits_frontier(range(given.seeds), given.folder)
    table = Table("setting", "evaluations", "Fréchet distance", "1-NN accuracy")
    for one in points:
        figures = [f"{one[name]:.3f} ± {one[f'{name}_error'] or 0:.3f}" for name in ("frechet", "one_nn")]
        table.add_row(one["setting"], str(one["evaluations"]), *figures)
    console = Console()
    console.print(table)
    ratio = engine_ratio(trained("digits", "digits", 0, given.folder))
    found = {"frontier": points, "few_evaluations": cheap_enough(points), "engine_ratio": ratio}
    console.print_json(json.dumps(found))


if __name__ == "__main__":
    main()

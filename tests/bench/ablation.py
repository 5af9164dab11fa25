"""Measures what each option of stability does: `make ablation` prints a table and writes bench-results/ablation.json.

It starts from DRL's own recipe in small, the preset `digits-t6`: T6, K = 30, leaky ReLU, spectral norm, warm-up, an
average. One option is switched at a time, then all that should help are on. Every variant trains with three seeds, two
trainings at a time on one thread each, and is judged by the Fréchet distance of raw pixels to the held-out digits.
The same seed means the same order of the data and the same noise, so differences are taken seed by seed.

The recipe is stable at this size, whatever is switched. A second, shorter set of runs under stress therefore shows what
keeps a training from diverging: without spectral norm, at a higher learning rate, until the first divergence.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from model import data, presets, training
from model.chains.sampling import sample
from model.checkpoints.checkpoint import load_weights, read_snapshot
from model.config import TrainConfig
from model.energies.energy_model import EnergyModel
from model.errors import DivergenceError
from model.evaluation import frechet_distance
from model.events import CheckpointEvent, RollbackEvent, StepEvent
from model.networks.freezing import iterate_power

_RESULTS = Path("bench-results/ablation.json")
_NEVER = 10**8
_STRESS_LEARNING_RATE = 0.1
_CLIP, _PENALTY = 1.0, 0.1

Change = Callable[[TrainConfig], TrainConfig]


def _activation(config: TrainConfig) -> TrainConfig:
    return replace(config, network=replace(config.network, activation="silu"))


def _clip(config: TrainConfig) -> TrainConfig:
    return replace(config, optimizer=replace(config.optimizer, max_gradient_norm=_CLIP))


def _shared_noise(config: TrainConfig) -> TrainConfig:
    return replace(config, shared_noise=True)


def _penalty(config: TrainConfig) -> TrainConfig:
    return replace(config, energy_penalty=_PENALTY)


def _no_warmup(config: TrainConfig) -> TrainConfig:
    return replace(config, optimizer=replace(config.optimizer, warmup_steps=0))


def _no_spectral_norm(config: TrainConfig) -> TrainConfig:
    return replace(config, network=replace(config.network, spectral_norm=False))


def _clip_and_shared_noise(config: TrainConfig) -> TrainConfig:
    return _clip(_shared_noise(config))


def _all(config: TrainConfig) -> TrainConfig:
    return _activation(_clip(_shared_noise(_penalty(config))))


def _stress(config: TrainConfig) -> TrainConfig:
    return _no_spectral_norm(replace(config, optimizer=replace(config.optimizer, learning_rate=_STRESS_LEARNING_RATE)))


VARIANTS: dict[str, Change] = {
    "DRL": lambda config: config,
    "SiLU": _activation,
    f"gradient clipped to {_CLIP:g}": _clip,
    "one noise for a pair": _shared_noise,
    f"energy penalty {_PENALTY:g}": _penalty,
    "no warm-up": _no_warmup,
    "no spectral norm": _no_spectral_norm,
    "clipping, one noise": _clip_and_shared_noise,
    "SiLU, clipping, one noise, penalty": _all,
}
_STRESSED = [name for name in VARIANTS if name != "no spectral norm"]
_FIRST = next(iter(VARIANTS))
_WITHOUT_AVERAGE = "no average"
"""The name of the row with the last weights of the first variant's own runs."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of one variant."""

    variant: str
    seed: int
    stressed: bool
    divergences: int
    first_divergence: int | None
    """The step of the first divergence, or None without one."""
    distance: float | None
    """The Fréchet distance of the averaged model's samples; None if the training gave up, and under stress."""
    distance_of_last_weights: float | None
    """The same of the last weights, measured for the first variant only."""
    clipped_share: float
    """The share of the reports whose mean gradient norm was above the limit of `_CLIP`."""
    training_s: float


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of the ablation: how many steps, seeds and samples it takes."""

    steps: int
    stress_steps: int
    seeds: int
    num_samples: int


def train_once(variant: str, seed: int, stressed: bool, size: Size) -> Run:
    """Train one variant, draw samples and judge them. It runs in a process of its own."""
    torch.set_num_threads(1)
    base = presets.override(presets.preset("digits-t6"), steps=size.stress_steps if stressed else size.steps, seed=seed)
    every = size.stress_steps if stressed else max(1, size.steps // 4)
    base = replace(base, log_every=5, sample_every=_NEVER, checkpoint_every=every, num_preview_samples=1)
    config = VARIANTS[variant](_stress(base) if stressed else base)
    digits = data.load("digits")
    began, rollbacks, norms, snapshot = time.monotonic(), [], [], None
    try:
        for event in training.train(config, digits):
            if isinstance(event, StepEvent):
                norms.append(event.gradient_norm)
            elif isinstance(event, RollbackEvent):
                rollbacks.append(event.step)
                if stressed:
                    break
            elif isinstance(event, CheckpointEvent) and event.step == config.steps and not stressed:
                snapshot = event
    except DivergenceError as error:
        rollbacks.append(error.step)
    training_s = time.monotonic() - began
    distances = _distances(snapshot, digits, size.num_samples, variant == _FIRST) if snapshot else [None]
    return Run(
        variant=variant,
        seed=seed,
        stressed=stressed,
        divergences=len(rollbacks),
        first_divergence=rollbacks[0] if rollbacks else None,
        distance=distances[0],
        distance_of_last_weights=distances[1] if len(distances) > 1 else None,
        clipped_share=statistics.fmean(norm > _CLIP for norm in norms) if norms else 0.0,
        training_s=training_s,
    )


def _distances(
    checkpoint: CheckpointEvent, digits: data.Dataset, num_samples: int, last_too: bool
) -> list[float | None]:
    """Return the Fréchet distances of samples from the averaged weights and, if wanted, from the last weights."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint.write(Path(directory))
        snapshot = read_snapshot(Path(directory))
    real = digits.held_out[:].numpy()
    distances: list[float | None] = []
    energy = snapshot.energy
    for weights in (energy.average, energy.weights) if last_too else (energy.average,):
        model = EnergyModel(snapshot.config, snapshot.event_shape).eval()
        load_weights(model, weights)
        iterate_power(model.network, 20)
        distances.append(frechet_distance(real, sample(model, num_samples, seed=0).x.numpy()))
    return distances


def summarize(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row for each variant, with means over the seeds and differences from the first variant seed by seed."""
    plain = [run for run in runs if not run.stressed]
    first = {run.seed: run.distance for run in plain if run.variant == _FIRST}
    rows = []
    for variant in [*VARIANTS, _WITHOUT_AVERAGE]:
        own = variant != _WITHOUT_AVERAGE
        chosen = [run for run in plain if run.variant == (variant if own else _FIRST)]
        found = {run.seed: run.distance if own else run.distance_of_last_weights for run in chosen}
        stressed = [run for run in runs if run.stressed and run.variant == variant]
        rows.append(
            {
                "variant": variant,
                "distance": _mean(list(found.values())),
                "difference": _mean([_minus(value, first.get(seed)) for seed, value in found.items()]),
                "divergences": sum(run.divergences for run in chosen) if own else None,
                "stress_diverged": sum(run.divergences > 0 for run in stressed) if stressed else None,
                "stress_first_steps": [run.first_divergence for run in stressed],
                "clipped_share": statistics.fmean(run.clipped_share for run in chosen),
                "training_s": statistics.fmean(run.training_s for run in chosen) if own else None,
            }
        )
    return rows


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _mean(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return the mean over the seeds and its standard error, or None if a seed has no value."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    error = statistics.stdev(known) / len(known) ** 0.5 if len(known) > 1 else 0.0
    return {"mean": statistics.fmean(known), "std_error": error}


def main() -> None:
    """Do all runs, print the table and write the file."""
    size = _size()
    console = Console()
    began, load_before = time.monotonic(), os.getloadavg()[0]
    wanted = [(name, seed, False) for seed in range(size.seeds) for name in VARIANTS]
    wanted += [(name, seed, True) for seed in range(size.seeds) for name in _STRESSED]
    runs: list[Run] = []
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train_once, *one, size) for one in wanted]):
            runs.append(run := future.result())
            console.print(f"{time.monotonic() - began:6.0f} s  {run}", soft_wrap=True, highlight=False)
    digits = data.load("digits")
    reference = frechet_distance(digits.held_out[:].numpy(), digits.train[: size.num_samples].numpy())
    results = {
        **asdict(size),
        "training_digits": reference,
        "rows": summarize(runs),
        "runs": [asdict(run) for run in sorted(runs, key=lambda run: (run.stressed, run.variant, run.seed))],
        "seconds": time.monotonic() - began,
        "load": [load_before, os.getloadavg()[0]],
    }
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    _print(console, results)


def _size() -> Size:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--stress-steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-samples", type=int, default=400)
    return Size(**vars(parser.parse_args()))


def _print(console: Console, results: dict[str, Any]) -> None:
    title = f"{results['steps']} steps, {results['seeds']} seeds; training digits {results['training_digits']:.2f}"
    headings = ("", "Fréchet distance", "from DRL's, seed by seed", "divergences", "diverged under stress", "s a run")
    table = Table(*headings, title=title)
    for row in results["rows"]:
        steps = ", ".join("-" if step is None else str(step) for step in row["stress_first_steps"])
        table.add_row(
            row["variant"],
            _told(row["distance"], "{:.2f}"),
            _told(row["difference"], "{:+.2f}"),
            "" if row["divergences"] is None else str(row["divergences"]),
            "" if row["stress_diverged"] is None else f"{row['stress_diverged']} ({steps})",
            "" if row["training_s"] is None else f"{row['training_s']:.0f}",
        )
    console.print(table)
    console.print(f"{results['seconds'] / 60:.1f} min; load {results['load'][0]:.1f}, then {results['load'][1]:.1f}")


def _told(value: dict[str, float] | None, form: str) -> str:
    return "gave up" if value is None else f"{form.format(value['mean'])} ± {value['std_error']:.2f}"


if __name__ == "__main__":
    main()

"""Measures how true the densities are: `make bench-density` prints the table and writes bench-results/density.json.

It compares Gaussians with their known log Z, and the four planar densities, trained with the preset `density-2d`, with
quadrature and their own formulas. The digits, trained with `density-digits`, stand beside scikit-learn's density
estimates of the same split; they are also told from inverted digits, and their chains run a hundred times as long as
in training. It is one run with two processes side by side; nothing here is timed.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from torch import Tensor

from model import data, presets
from model.chains.diagnostics import LongRun, run_long
from model.checkpoints.checkpoint import load_model
from model.data.planar import PLANAR_DENSITIES
from model.densities.annealing import AnnealingPath
from model.densities.calibration import continuous
from model.densities.density import (
    calibrate,
    data_energy,
    default_tolerance,
    level_energy,
    normalized,
    tolerance_of,
)
from model.densities.log_z import LogZ, bound_log_z
from model.energies.bases import MixtureBase
from model.energies.energy import EnergyFn, GaussianEnergy, MixtureEnergy
from model.energies.energy_model import EnergyModel
from model.events import CheckpointEvent
from model.noise import NoiseSource, SharedNoise, make_generator
from model.training.loop import train

Array = npt.NDArray[np.float32]
_RESULTS = Path("bench-results/density.json")
_TEST_POINTS = 20_000
_GRID = (3.3, 660)  # half the side of the quadrature's square, and its cells along a side


@dataclass(frozen=True)
class GaussianRow:
    """A Gaussian of mean −0.5…0.5 and standard deviation 0.7, from N(0, I)."""

    dim: int
    truth: float
    lower: float
    upper: float
    lower_std_error: float | None
    upper_std_error: float | None


@dataclass(frozen=True)
class HardRow:
    """A target that chains do not reach, or that is hard to weigh: what is said of its log Z, nats."""

    name: str
    truth: float | None
    """None where nothing tells it."""
    lower: float
    upper: float
    interval_low: float | None
    interval_high: float | None
    verdict: str


@dataclass(frozen=True)
class PlanarRow:
    """The figures of one trained planar density."""

    name: str
    log_z: float
    log_z_std_error: float | None
    quadrature: float
    """log Z by quadrature."""
    gap_nats: float
    """The mean over held-out points of the true log density − the served one, nats."""
    integral: float
    """The integral of the served density over the plane."""


@dataclass(frozen=True)
class Estimate:
    """The mean log density of held-out data in nats, and its bounds."""

    mean: float
    lower: float | None
    """The value at the upper end of the interval of log Z."""
    upper: float | None
    """The value at the lower end of the interval of log Z."""
    verdict: str
    """What is said of log Z."""


@dataclass(frozen=True)
class Digits:
    """The mean log densities of the held-out digits, dequantized, in nats."""

    model: Estimate
    gaussian_mixture: float
    kernel_density: float
    base: float
    """The mean log density under the mixture that the model starts from and corrects."""
    auroc_inverted: float
    """The share of pairs in which a held-out digit scores above an inverted one."""
    long_runs: list[LongRun]


def gaussian(dim: int, num_chains: int, max_bridges: int, num_leapfrog: int) -> GaussianRow:
    """Estimate log Z from both sides for a Gaussian in `dim` dimensions."""
    target = GaussianEnergy(torch.linspace(-0.5, 0.5, dim, dtype=torch.float64), 0.7)
    start = GaussianEnergy(torch.zeros(dim, dtype=torch.float64), 1.0)

    def normals(count: int, noise: NoiseSource) -> Tensor:
        return noise.normal(torch.empty(count, dim, dtype=torch.float64))

    torch.set_num_threads(1)
    step_sizes = torch.full((2,), 0.3, dtype=torch.float64)
    path = AnnealingPath([start, target], start.log_z, normals, step_sizes, num_leapfrog=num_leapfrog)
    *_, last = bound_log_z(
        path,
        SharedNoise(make_generator(dim)),
        num_chains=num_chains,
        tolerance=0.0,
        max_bridges=max_bridges,
        sample_target=lambda count, noise: target.mean + target.std * normals(count, noise),
    )
    return GaussianRow(dim, target.log_z, last.lower, last.upper, last.lower_std_error, last.upper_std_error)


def _trained(preset: str, dataset: data.Dataset) -> EnergyModel:
    """Return the model that a preset ends with, trained on one thread."""
    torch.set_num_threads(1)
    config = presets.override(presets.preset(preset), dataset=dataset.name, checkpoint_every=10**6, sample_every=10**6)
    with tempfile.TemporaryDirectory() as directory:
        for event in train(config, dataset):
            if isinstance(event, CheckpointEvent):
                event.write(Path(directory))
        return load_model(Path(directory))


def planar(name: str) -> PlanarRow:
    """Train on one planar density with the preset, calibrate, and compare with the truth."""
    dataset = data.load(name)
    model = _trained("density-2d", dataset)
    *_, log_z = calibrate(
        model, num_chains=4096, tolerance=0.008, max_bridges=8, max_chains=4096, x_data=dataset.held_out[:]
    )
    points = dataset.held_out[:_TEST_POINTS]
    truth = PLANAR_DENSITIES[name]().log_density(points.double()).mean()
    served = normalized(model, data_energy(model, points), log_z.estimate).mean()
    quadrature = _quadrature(model)
    return PlanarRow(
        name,
        log_z.estimate,
        log_z.std_error,
        quadrature,
        float(truth - served),
        math.exp(quadrature - log_z.estimate),
    )


def _quadrature(model: EnergyModel) -> float:
    half_side, cells = _GRID
    width = 2 * half_side / cells
    axis = (torch.arange(cells) + 0.5) * width - half_side
    energy = level_energy(model, 0)
    with torch.no_grad():
        energies = torch.cat([energy(c).double() for c in torch.split(torch.cartesian_prod(axis, axis), 8192)])
    return float(torch.logsumexp(-energies, 0)) + 2 * math.log(width)


def digits() -> Digits:
    """Train on the digits with the preset, calibrate, and score beside scikit-learn's estimates of the same split."""
    dataset = data.load("digits")
    model = _trained("density-digits", dataset)

    def dequantize(events: Tensor, seed: int) -> Tensor:
        return dataset.space.dequantized(events, SharedNoise(make_generator(seed)))

    held_out = dequantize(dataset.held_out[:], 0)
    *_, log_z = calibrate(model, num_chains=1024, max_bridges=64, max_chains=2048, x_data=held_out)
    energy = data_energy(model, held_out)
    inverted = data_energy(model, dequantize(-dataset.held_out[:], 1))
    train_set = dequantize(dataset.train[:], 2).flatten(1).numpy()
    assert isinstance(model.base, MixtureBase)
    base = model.base.normalized(float(model.schedule.alpha_bar[0]) * held_out, model.log_snr[:1].expand(len(held_out)))
    return Digits(
        model=_estimate(model, energy, log_z),
        gaussian_mixture=_gaussian_mixture(train_set, held_out.flatten(1).numpy()),
        kernel_density=_kernel_density(train_set, held_out.flatten(1).numpy()),
        base=float(normalized(model, base[0].double(), 0.0).mean()),
        auroc_inverted=float(
            roc_auc_score([0] * len(energy) + [1] * len(inverted), torch.cat([energy, inverted]).numpy())
        ),
        long_runs=run_long(model, dataset.train[:16], num_steps=100 * model.config.chain.num_steps, seed=0),
    )


def _estimate(model: EnergyModel, energy: Tensor, log_z: LogZ) -> Estimate:
    def mean(at: float) -> float:
        return float(normalized(model, energy, at).mean())

    low, high = log_z.interval or (None, None)
    ends = (None if high is None else mean(high), None if low is None else mean(low))
    return Estimate(mean(log_z.estimate), *ends, log_z.verdict(tolerance_of(model, None)))


def _two_modes(dim: int, near: float) -> MixtureEnergy:
    """Two unit Gaussians 20 apart, of which one, of weight `near`, is where the chains start."""
    means = torch.zeros(2, dim, dtype=torch.float64)
    means[1, 0] = 20
    return MixtureEnergy(means, torch.ones(2, dtype=torch.float64), torch.tensor([near, 1 - near], dtype=torch.float64))


_FAR = GaussianEnergy(torch.full((64,), 1.4, dtype=torch.float64), 0.4)
_HARD: dict[str, tuple[int, EnergyFn, float, int]] = {
    "half the mass 20 away, 2-D": (2, _two_modes(2, 0.5), 0.0, 32),
    "nine tenths 20 away, 64-D": (64, _two_modes(64, 0.1), 0.0, 32),
    "weights of spread 76, 64-D": (64, _FAR, _FAR.log_z, 1),
    "the same with 64 bridges": (64, _FAR, _FAR.log_z, 64),
}
"""dimension, target, log Z and bridges; the first two give data for chains that start from them"""


def hard(name: str) -> HardRow:
    """Estimate log Z of one of the targets from N(0, I), or of a model of the preset `digits`."""
    torch.set_num_threads(1)
    if name not in _HARD:
        dataset = data.load("digits")
        model = _trained("digits", dataset)
        held_out = continuous(dataset, dataset.held_out)
        *_, log_z = calibrate(model, num_chains=512, max_bridges=4, max_chains=512, x_data=held_out)
        return _hard_row(name, None, log_z, tolerance_of(model, None))
    dim, target, truth, max_bridges = _HARD[name]
    start, generator = GaussianEnergy(torch.zeros(dim, dtype=torch.float64), 1.0), make_generator(1)
    path = AnnealingPath(
        [start, target],
        start.log_z,
        lambda count, noise: noise.normal(torch.empty(count, dim, dtype=torch.float64)),
        torch.full((2,), 0.7, dtype=torch.float64),
    )
    assert isinstance(target, MixtureEnergy | GaussianEnergy)
    *_, log_z = bound_log_z(
        path,
        SharedNoise(make_generator(0)),
        num_chains=512,
        tolerance=default_tolerance(dim),
        max_bridges=max_bridges,
        max_chains=2048,
        sample_data=lambda count, _noise: target.sample(count, generator),
    )
    return _hard_row(name, truth, log_z, default_tolerance(dim))


def _hard_row(name: str, truth: float | None, log_z: LogZ, tolerance: float) -> HardRow:
    low, high = log_z.interval or (None, None)
    return HardRow(name, truth, log_z.lower, log_z.upper, low, high, log_z.verdict(tolerance))


def _gaussian_mixture(train_set: Array, held_out: Array) -> float:
    """Return the mean log density under a Gaussian mixture with full covariances.

    The last fifth of the training split chooses the number of components and the regularization.
    """
    fit, validation = train_set[: len(train_set) * 4 // 5], train_set[len(train_set) * 4 // 5 :]

    def mixture(components: int, added: float, x: Array) -> GaussianMixture:
        return GaussianMixture(components, reg_covar=added, random_state=0).fit(x)

    grid = itertools.product(range(1, 21), (3e-4, 1e-3, 3e-3, 1e-2))
    best = max(grid, key=lambda choice: float(mixture(choice[0], choice[1], fit).score(validation)))
    return float(mixture(best[0], best[1], train_set).score(held_out))


def _kernel_density(train_set: Array, held_out: Array) -> float:
    """Return the mean log density under Gaussian kernels.

    The last fifth of the training split chooses the bandwidth.
    """
    fit, validation = train_set[: len(train_set) * 4 // 5], train_set[len(train_set) * 4 // 5 :]
    widths = np.geomspace(0.05, 1.0, 40)
    best = max(widths, key=lambda width: float(KernelDensity(bandwidth=width).fit(fit).score(validation)))
    return float(KernelDensity(bandwidth=best).fit(train_set).score(held_out)) / len(held_out)


_GAUSSIANS = ((2, 4000, 32, 1), (64, 4000, 256, 1), (3072, 64, 1024, 5))  # dimensions, chains, bridges, leapfrogs


def main() -> None:
    """Measure everything, then print the tables and write the file."""
    console = Console()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found_digits = pool.apply_async(digits)
        found_hard = pool.map_async(hard, ("preset digits, 64-D", *_HARD), chunksize=1)
        found_planes = pool.map_async(planar, PLANAR_DENSITIES, chunksize=1)
        found_gaussians = pool.starmap_async(gaussian, _GAUSSIANS, chunksize=1)
        with console.status("training on digits and four planar densities, then Gaussians in up to 3072 dimensions"):
            digit, planes, gaussians = found_digits.get(), found_planes.get(), found_gaussians.get()
            hards = found_hard.get()
    _print(console, gaussians, planes, digit)
    _print_hard(console, hards)
    _RESULTS.parent.mkdir(exist_ok=True)
    results = {
        "gaussian": [asdict(row) for row in gaussians],
        "planar": [asdict(row) for row in planes],
        "digits": asdict(digit),
        "hard": [asdict(row) for row in hards],
        "auroc_inverted": digit.auroc_inverted,
    }
    _RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _print(console: Console, gaussians: list[GaussianRow], planes: list[PlanarRow], digit: Digits) -> None:
    table = Table("dimensions", "log Z", "lower", "upper", title="Gaussians")
    for row in gaussians:
        table.add_row(str(row.dim), *(f"{value:.3f}" for value in (row.truth, row.lower, row.upper)))
    console.print(table)
    table = Table("density", "log Z", "quadrature", "gap, nats", "integral", title="Planar densities")
    for plane in planes:
        table.add_row(
            plane.name,
            f"{plane.log_z:.4f} ± {_told(plane.log_z_std_error, 4)}",
            f"{plane.quadrature:.4f}",
            f"{plane.gap_nats:.4f}",
            f"{plane.integral:.4f}",
        )
    console.print(table)
    table = Table("density of held-out digits", "mean, nats", "lower", "upper", title="Digits, 64 dimensions")
    table.add_row("model", *(_told(value) for value in (digit.model.mean, digit.model.lower, digit.model.upper)))
    for name in ("base", "gaussian_mixture", "kernel_density"):
        table.add_row(name.replace("_", " "), f"{getattr(digit, name):.2f}", "", "")
    console.print(table)
    console.print(f"AUROC of digits against inverted digits: {digit.auroc_inverted:.4f}")
    headings = ("level", "acceptance", "energy drift, nats", "split R-hat", "effective of kept")
    table = Table(*headings, title="Chains 100 times as long as in training, on the conditionals")
    for run in digit.long_runs:
        table.add_row(
            str(run.level),
            f"{run.acceptance_rate:.2f}",
            f"{run.energy_drift:+.2f} ± {run.drift_std_error:.2f}",
            f"{run.split_r_hat:.3f}",
            f"{run.effective_sample_size:.0f} of {run.num_kept}",
        )
    console.print(table)


def _print_hard(console: Console, rows: list[HardRow]) -> None:
    table = Table("target", "log Z", "lower", "upper", "interval", "verdict", title="Hard targets")
    for row in rows:
        interval = f"{_told(row.interval_low)} to {_told(row.interval_high)}"
        table.add_row(row.name, _told(row.truth), _told(row.lower), _told(row.upper), interval, row.verdict)
    console.print(table)


def _told(value: float | None, places: int = 2) -> str:
    return "not known" if value is None else f"{value:.{places}f}"


if __name__ == "__main__":
    main()

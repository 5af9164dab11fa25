"""How true the densities are: `make bench-density` prints the table and writes bench-results/density.json.

Gaussians of known log Z; the four planar densities trained with the preset `density-2d` against quadrature and their
own formulas. One run, two processes side by side; nothing here is timed.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from model import data, presets
from model.annealing import AnnealingPath, bound_log_z
from model.checkpoint import load_model
from model.density import calibrate, data_energy, level_energy, normalized
from model.energy import GaussianEnergy
from model.energy_model import EnergyModel
from model.events import CheckpointEvent
from model.noise import NoiseSource, SharedNoise, make_generator
from model.planar import PLANAR_DENSITIES
from model.training import train

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
    lower_std_error: float
    upper_std_error: float


@dataclass(frozen=True)
class PlanarRow:
    """One trained density."""

    name: str
    log_z: float
    log_z_std_error: float
    quadrature: float
    """log Z by quadrature"""
    gap_nats: float
    """mean over held-out points of true log density − the served one"""
    integral: float
    """of the served density over the plane"""


def gaussian(dim: int, num_chains: int, max_bridges: int) -> GaussianRow:
    """Both sides for a Gaussian in `dim` dimensions."""
    target = GaussianEnergy(torch.linspace(-0.5, 0.5, dim, dtype=torch.float64), 0.7)
    start = GaussianEnergy(torch.zeros(dim, dtype=torch.float64), 1.0)

    def normals(count: int, noise: NoiseSource) -> Tensor:
        return noise.normal(torch.empty(count, dim, dtype=torch.float64))

    path = AnnealingPath([start, target], start.log_z, normals, torch.full((2,), 0.3, dtype=torch.float64))
    *_, last = bound_log_z(
        path,
        SharedNoise(make_generator(dim)),
        num_chains=num_chains,
        tolerance=0.0,
        max_bridges=max_bridges,
        sample_target=lambda count, noise: target.mean + target.std * normals(count, noise),
    )
    return GaussianRow(dim, target.log_z, last.lower, last.upper, last.lower_std_error, last.upper_std_error)


def planar(name: str) -> PlanarRow:
    """Train on one planar density with the preset, calibrate, and compare with the truth."""
    torch.set_num_threads(1)
    dataset = data.load(name)
    config = presets.override(presets.preset("density-2d"), dataset=name, checkpoint_every=10**6, sample_every=10**6)
    with tempfile.TemporaryDirectory() as directory:
        for event in train(config, dataset):
            if isinstance(event, CheckpointEvent):
                event.write(Path(directory))
        model = load_model(Path(directory))
    *_, log_z = calibrate(model, num_chains=4096, tolerance=0.008, max_bridges=4)
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


def main() -> None:
    """Everything, then the tables and the file."""
    console = Console()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        training = pool.map_async(planar, PLANAR_DENSITIES, chunksize=1)
        with console.status("training four planar densities"):
            planes = training.get()
    gaussians = [gaussian(2, 4000, 32), gaussian(64, 4000, 256), gaussian(3072, 64, 1024)]
    table = Table("dimensions", "log Z", "lower", "upper", title="Gaussians")
    for row in gaussians:
        table.add_row(str(row.dim), *(f"{value:.3f}" for value in (row.truth, row.lower, row.upper)))
    console.print(table)
    table = Table("density", "log Z", "quadrature", "gap, nats", "integral", title="Planar densities")
    for plane in planes:
        table.add_row(
            plane.name,
            f"{plane.log_z:.4f} ± {plane.log_z_std_error:.4f}",
            f"{plane.quadrature:.4f}",
            f"{plane.gap_nats:.4f}",
            f"{plane.integral:.4f}",
        )
    console.print(table)
    _RESULTS.parent.mkdir(exist_ok=True)
    results = {"gaussian": [asdict(row) for row in gaussians], "planar": [asdict(row) for row in planes]}
    _RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

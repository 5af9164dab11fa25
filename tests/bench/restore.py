"""Measures how well items are restored: `make bench-restore` prints tables and writes bench-results/restore.json.

Exact: a mixture of Gaussians is the model, so that every posterior is known. Items are drawn from it, measured and
restored by 64 chains; their mean, variance and evidence stand beside the true ones, and the ranks of the true values
among the samples tell the coverage of intervals and calibration (Talts et al. 2018). The evidence and its error are
those of 512 chains. Trained: a digits model beside other ways to restore held-out digits, those of
`tests.bench.restore_rivals`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import chisquare
from sklearn.datasets import load_digits
from torch import Tensor

from model.inverse.config import Method, parse
from model.inverse.operators import make_operator
from model.inverse.restore import Restoration, restore
from tests.bench import restore_rivals
from tests.model.inverse import exact

EXACT = {
    "inpaint half": "box:4,0,4,8",
    "compress 4x": "compress:0.25",
    "denoise": "denoise",
    "30 % of pixels": "random:0.3",
}
METHODS: tuple[Method, ...] = ("smc", "posterior")
NUM_CHAINS = 64
NUM_EVIDENCE_CHAINS = 512
NUM_BINS = 10


@dataclass(frozen=True)
class ExactRow:
    """One line of the table of exactness, averaged over items."""

    operator: str
    method: Method
    mean_error_ratio: float
    variance_ratio: float
    evidence_z: list[float] | None
    evidence_error: list[float] | None
    evidence_untold: int
    coverage_50: float
    coverage_90: float
    arrived: float
    num_items: int
    seconds_per_item: float


def exact_rows(operator_name: str, num_items: int) -> tuple[list[ExactRow], list[float]]:
    """Return the rows of one operator, and the ranks of `smc` on [0, 1): of three projections of every item."""
    images = torch.tensor(load_digits().images / 8 - 1).float()[:, None]
    model = exact.mixture_model(images[:1200], 10)
    operator = make_operator(parse(EXACT[operator_name]), model.event_shape)
    noise_std = 0.5 if operator_name == "denoise" else 0.1
    truth = exact.draw(model, num_items, 11)
    generator = torch.Generator().manual_seed(12)
    measured = operator.forward(truth)
    measured = measured + noise_std * torch.randn(measured.shape, generator=generator, dtype=torch.float64)
    projections = torch.randn(3, truth[0].numel(), generator=generator, dtype=torch.float64)
    rows, ranks = [], []

    def run(i: int, method: Method, num_chains: int) -> Restoration:
        return restore(
            model, operator, measured[i].float(), noise_std=noise_std, method=method, num_samples=num_chains,
            num_chains=num_chains, seed=i,
        )  # fmt: skip

    for method in METHODS:
        began, errors, variances, places, arrived = time.perf_counter(), [], [], [], 0
        for i in range(num_items):
            known, found = exact.posterior(model, operator, measured[i], noise_std), run(i, method, NUM_CHAINS)
            errors.append(float(((found.mean.flatten() - known.mean) ** 2 / known.variance).mean()))
            variances.append(float((found.std.flatten().double() ** 2 / known.variance).mean()))
            samples = found.x.flatten(1).double()
            places.append(_places(samples, truth[i].flatten(), generator))
            if method == "smc":
                ranks += _places(samples @ projections.T, projections @ truth[i].flatten(), generator).tolist()
            arrived += found.verdict == "arrived"
        seconds = (time.perf_counter() - began) / num_items
        z, evidence_errors, untold = [], [], 0
        for i in range(min(num_items, 6) if method == "smc" else 0):
            known, found = exact.posterior(model, operator, measured[i], noise_std), run(i, "smc", NUM_EVIDENCE_CHAINS)
            assert found.log_evidence is not None
            evidence_errors.append(found.log_evidence - known.log_evidence)
            if found.log_evidence_std_error is None:
                untold += 1
            else:
                z.append(evidence_errors[-1] / found.log_evidence_std_error)
        place = torch.stack(places)
        rows.append(
            ExactRow(
                operator_name, method, float(np.mean(errors)), float(np.mean(variances)), z or None,
                evidence_errors or None, untold, _inside(place, 0.5), _inside(place, 0.9), arrived / num_items,
                num_items, seconds,
            )
        )  # fmt: skip
    return rows, ranks


def _places(samples: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """Return the places on [0, 1) of true values (D,) among samples (N, D): uniform if both have one distribution."""
    below = (samples < truth).sum(0)
    return (below + torch.rand(below.shape, generator=generator)) / (len(samples) + 1)


def _inside(places: Tensor, share: float) -> float:
    return float(((places - 0.5).abs() < share / 2).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=40, help="items of each operator of the exact part")
    parser.add_argument("--checkpoint", type=Path, help="a digits model, in place of training one")
    parser.add_argument("--trained-items", type=int, default=12)
    parser.add_argument("--only", choices=["exact", "trained"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=180)
    report: dict[str, Any] = {}
    if arguments.only != "trained":
        found = [exact_rows(name, arguments.items) for name in EXACT]
        rows, ranks = [row for rows, _ in found for row in rows], [rank for _, ranks in found for rank in ranks]
        counts = np.histogram(ranks, NUM_BINS, (0, 1))[0]
        report |= {
            "exact": [asdict(row) for row in rows],
            "sbc": {"counts": counts.tolist(), "p": float(chisquare(counts).pvalue)},
        }
        _print(console, "restored beside the known posterior", report["exact"])
        console.print("ranks:", report["sbc"])
    if arguments.only != "exact":
        model = restore_rivals.digits_model(arguments.checkpoint)
        report["trained"] = restore_rivals.compare(model, num_items=arguments.trained_items)
        _print(console, "held-out digits", report["trained"])
    path = Path("bench-results/restore.json")
    path.parent.mkdir(exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**kept, **report}, indent=2))
    console.print(f"written to {path}")


def _print(console: Console, title: str, rows: list[dict[str, object]]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(_told(value) for value in row.values()))
    console.print(table)


def _told(value: object) -> str:
    if isinstance(value, list):
        return " ".join(f"{one:.2f}" for one in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()

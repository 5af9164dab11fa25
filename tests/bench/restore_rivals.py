"""Held-out digits, restored by a trained model and by other ways."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from model import data, presets, training
from model.checkpoints.checkpoint import load_model
from model.energies.energy_model import EnergyModel
from model.events import CheckpointEvent
from model.inverse.config import Method, parse
from model.inverse.operators import Operator, make_operator
from model.inverse.restore import restore
from tests.model.inverse import exact

OPERATORS = {
    "inpaint": ("box:2,2,4,4", 0.05),
    "30 % of pixels": ("random:0.3", 0.05),
    "compress 4x": ("compress:0.25", 0.05),
    "downsample 2x": ("downsample:2", 0.05),
    "blur": ("blur:1.0", 0.05),
    "denoise": ("denoise", 0.5),
}
METHODS: tuple[Method, ...] = ("posterior", "smc", "ascent")
NUM_SAMPLES = 16


@dataclass(frozen=True)
class TrainedRow:
    """One line of the table of restored digits, averaged over items."""

    model: str
    operator: str
    method: str
    psnr_one: float
    psnr_mean: float
    crps: float
    misfit: float
    coverage_90: float | None
    nfe: int
    arrived: float | None
    seconds: float


def digits_model(checkpoint: Path | None) -> EnergyModel:
    """Return a model trained with the preset `digits`: that of `checkpoint`, or one that is trained now."""
    if checkpoint is not None:
        return load_model(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        for event in training.train(presets.PRESETS["digits"], data.load("digits")):
            if isinstance(event, CheckpointEvent):
                event.write(Path(folder))
        return load_model(Path(folder))


def compare(model: EnergyModel, *, num_items: int) -> list[dict[str, object]]:
    """Return the rows for all operators and ways."""
    dataset = data.load("digits")
    train, held_out = dataset.train[: len(dataset.train)].double(), dataset.held_out[:num_items].double()
    mixture = exact.mixture_model(train.float(), 10)
    rows = []
    for name, (text, noise_std) in OPERATORS.items():
        operator = make_operator(parse(text), model.event_shape)
        generator = torch.Generator().manual_seed(3)
        measured = operator.forward(held_out)
        measured = measured + noise_std * torch.randn(measured.shape, generator=generator, dtype=torch.float64)
        for method in METHODS:
            began, draws, misfit, nfe, arrived = time.perf_counter(), [], 0.0, 0, 0
            for i, b in enumerate(measured):
                found = restore(
                    model, operator, b.float(), noise_std=noise_std, method=method, num_samples=NUM_SAMPLES,
                    num_chains=32, seed=i,
                )  # fmt: skip
                draws.append(found.x.double())
                misfit, nfe = misfit + found.misfit / num_items, max(nfe, found.num_evaluations)
                arrived += found.verdict == "arrived"
            seconds = (time.perf_counter() - began) / num_items
            told = None if method == "ascent" else arrived / num_items
            rows.append(_row(name, method, torch.stack(draws), held_out, misfit, nfe, told, seconds))
        for rival, answer in _rivals(train, mixture, operator, noise_std).items():
            began = time.perf_counter()
            draws = [answer(b) for b in measured]
            misfit = sum(
                float(((operator.forward(x) - b) ** 2).mean()) / noise_std**2
                for x, b in zip(draws, measured, strict=True)
            )
            seconds = (time.perf_counter() - began) / num_items
            rows.append(_row(name, rival, torch.stack(draws), held_out, misfit / num_items, 0, None, seconds))
    return [asdict(row) for row in rows]


def _row(
    operator: str,
    method: str,
    draws: Tensor,
    truth: Tensor,
    misfit: float,
    nfe: int,
    arrived: float | None,
    seconds: float,
) -> TrainedRow:
    """Score draws (items, N, *event) of items (items, *event)."""
    draws, truth = draws.clamp(-1, 1).flatten(2), truth.flatten(1)
    low, high = draws.quantile(0.05, 1), draws.quantile(0.95, 1)
    inside = float(((truth >= low) & (truth <= high)).double().mean()) if draws.shape[1] > 1 else None
    return TrainedRow(
        "digits", operator, method, _psnr(draws[:, 0], truth), _psnr(draws.mean(1), truth), _crps(draws, truth), misfit,
        inside, nfe, arrived, seconds,
    )  # fmt: skip


def _psnr(x: Tensor, truth: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB, of values in [−1, 1]."""
    return float((10 * torch.log10(4 / ((x - truth) ** 2).mean(1))).mean())


def _crps(draws: Tensor, truth: Tensor) -> float:
    """Return the continuous ranked probability score of draws (items, N, D), unbiased for N > 1."""
    count = draws.shape[1]
    spread = (draws[:, :, None] - draws[:, None]).abs().sum((1, 2)) / max(1, count * (count - 1)) / 2
    return float(((draws - truth[:, None]).abs().mean(1) - spread).mean())


def _rivals(
    train: Tensor, mixture: EnergyModel, operator: Operator, noise_std: float
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the other ways: each takes a measurement (*measurement) to draws (N, *event), or to one answer."""
    shape, flat = train.shape[1:], train.flatten(1)
    mean, covariance, rows = flat.mean(0), torch.cov(flat.T), operator.matrix
    spread = rows @ covariance @ rows.T + noise_std**2 * torch.eye(len(rows), dtype=torch.float64)
    gain = torch.linalg.solve(spread, rows @ covariance).T
    measured = operator.forward(train).flatten(1)

    def wiener(b: Tensor) -> Tensor:
        return torch.as_tensor(mean + gain @ (b.flatten() - rows @ mean)).reshape(1, *shape)

    def mixture_draws(b: Tensor) -> Tensor:
        known = exact.posterior(mixture, operator, b, noise_std)
        generator = torch.Generator().manual_seed(0)
        chosen = torch.multinomial(known.shares, NUM_SAMPLES, replacement=True, generator=generator)
        ridge = 1e-9 * torch.eye(len(mean), dtype=torch.float64)
        roots = torch.linalg.cholesky(known.covariances[chosen] + ridge)
        noise = torch.randn(NUM_SAMPLES, len(mean), 1, generator=generator, dtype=torch.float64)
        return torch.as_tensor(known.means[chosen] + (roots @ noise)[..., 0]).reshape(-1, *shape)

    def mixture_mean(b: Tensor) -> Tensor:
        return exact.posterior(mixture, operator, b, noise_std).mean.reshape(1, *shape)

    def nearest(b: Tensor) -> Tensor:
        return train[((measured - b.flatten()) ** 2).sum(1).argmin()][None]

    def total_variation(b: Tensor) -> Tensor:
        return _total_variation(operator, b, noise_std)

    return {
        "wiener": wiener,
        "mixture": mixture_draws,
        "mixture mean": mixture_mean,
        "total variation": total_variation,
        "nearest": nearest,
    }


def _total_variation(operator: Operator, b: Tensor, noise_std: float, weight: float = 1.5) -> Tensor:
    """Return the minimum of |A x − b|²/(2s²) + weight · TV(x), smoothed, by a quasi-Newton method."""
    x = operator.pseudo_inverse(b[None]).clone().requires_grad_()
    descent = torch.optim.LBFGS([x], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        descent.zero_grad()
        down, right = x.diff(dim=-2)[..., :, :-1], x.diff(dim=-1)[..., :-1, :]
        value = ((operator.forward(x) - b) ** 2).sum() / (2 * noise_std**2)
        value = value + weight * (down**2 + right**2 + 1e-4).sqrt().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    descent.step(loss)  # type: ignore[no-untyped-call]
    return x.detach()

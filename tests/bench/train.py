"""Measures the cost of a training step and a sample: `make bench-train` prints tables, writes bench-results/train.json.

It compares DRL's CIFAR-10 network (N = 2, 9,056,256 parameters), T6, K = 30, batch 8, with the plain implementation
beside this file and with the machine's own measured peaks, all in one run and in turns, so that other load meets
everyone alike. The peaks are the fastest of short calls and the steps medians of long ones, so shares of the peak mean
something on an idle machine only. Operations are counted as direct convolutions take them: ours take fewer
(model.networks.winograd), so a share can exceed 1. Then it measures how a step's cost grows, what its surroundings
take, and what bfloat16 does to a model of digits.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model import data, presets, training
from model.chains.sampling import descend, sample
from model.checkpoints.checkpoint import load_model
from model.conditions import At
from model.config import (
    ChainConfig,
    NetworkConfig,
    OptimizerConfig,
    Precision,
    SamplingConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.data.augmentation import augment
from model.energies.energy_model import EnergyModel
from model.evaluation import frechet_distance
from model.event_kinds.pixels import BIN_WIDTH
from model.events import CheckpointEvent, StepEvent
from model.noise import SharedNoise, make_generator
from model.spaces.affine import AffineSpace
from model.training import loop
from model.training.memory import TrialStep
from model.training.objective import stratified_levels
from model.training.state import STEP_STREAM
from tests.bench.plain import PlainModel, plain_copy
from tests.servers import ACCESS_KEY, BUCKET, SECRET_KEY, running_seaweedfs
from worker.ids import new_id
from worker.settings import Settings
from worker.storage.artifacts import Artifacts

_RESULTS = Path("bench-results/train.json")
_ROUNDS = 3
_SAMPLING_STEPS = 5
"""at each level; the time per gradient evaluation does not depend on it"""
BENCH_CONFIG = TrainConfig(
    network=NetworkConfig(num_blocks=2),
    optimizer=OptimizerConfig(max_gradient_norm=None),
    batch_size=8,
    shared_noise=False,
    horizontal_flips=True,
    steps=1_000_000,
    log_every=1,
    sample_every=10**8,
    checkpoint_every=10**8,
)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def noise_dataset() -> data.Dataset:
    """Return noise in the shape of CIFAR-10, because the content of pixels does not change what a step costs."""
    events = torch.rand(256, 3, 32, 32, generator=make_generator(0)) * 2 - 1
    return data.Dataset("noise", events, events[:8], AffineSpace.discrete((3, 32, 32), BIN_WIDTH))


def timed(fn: Callable[[], Any]) -> float:
    """Return the seconds that one call takes."""
    since = time.perf_counter()
    fn()
    return time.perf_counter() - since


def fastest(fn: Callable[[], Any], rounds: int = 12) -> float:
    """Return the least seconds of several calls, for calls that are short."""
    fn()
    return min(timed(fn) for _ in range(rounds))


def peaks(dtype: torch.dtype) -> tuple[float, float]:
    """Return the FLOP/s of the best 3×3 convolution and of the best matrix product found on this machine."""

    def convolution(batch: int, channels: int, side: int) -> float:
        x = torch.randn(batch, channels, side, side).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3).to(dtype, memory_format=torch.channels_last)
        return 18 * batch * channels**2 * side**2 / fastest(lambda: F.conv2d(x, weight, padding=1))

    def product(size: int) -> float:
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        return 2 * size**3 / fastest(lambda: a @ b)

    shapes = ((8, 128, 32), (8, 256, 16), (8, 256, 32), (16, 256, 16))
    with torch.no_grad():
        return max(convolution(*shape) for shape in shapes), max(product(size) for size in (1024, 2048))


def instructions() -> list[str]:
    """Return the machine's vector and matrix instructions that matter here: bfloat16 is fast if there are AMX tiles."""
    has = torch.cpu.get_capabilities()
    names = {"AVX512": "avx512_f", "AVX512-BF16": "avx512_bf16", "AMX-BF16": "amx_bf16"}
    return [name for name, flag in names.items() if has.get(flag)]


def forward_flops(config: TrainConfig) -> float:
    """Return the FLOPs of one event's way forward through the network."""
    model = EnergyModel(config, (3, 32, 32))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.network(torch.zeros(1, 3, 32, 32), At(torch.zeros(1, dtype=torch.int64)))
    return float(counter.get_total_flops())


def step_flops(config: TrainConfig) -> float:
    """Return the FLOPs of a training step.

    They are K gradients by the position (two forwards each), then one by the weights of twice the batch (three).
    """
    return config.pairs_per_step * forward_flops(config) * (2 * config.chain.num_steps + 2 * 3)


def _steps(config: TrainConfig, dataset: data.Dataset) -> Iterator[StepEvent]:
    """Train, and yield one step at a time."""
    for event in training.train(config, dataset):
        if isinstance(event, StepEvent):
            yield event


class PlainTraining:
    """The same training by the plain implementation."""

    def __init__(self, config: TrainConfig, dataset: data.Dataset) -> None:
        self.config, self.dataset, self.step = config, dataset, 0
        self.model = training.start(config, dataset).model
        self.plain: PlainModel = plain_copy(self.model, 3)

    def __next__(self) -> tuple[float, float]:
        """Take the next step, on the batch and noise that `training.train` takes for it: (loss, gradient norm)."""
        config, self.step = self.config, self.step + 1
        noise = SharedNoise(make_generator(config.seed, STEP_STREAM, self.step - 1))
        events = self.dataset.train
        batch = events[loop._batch_rows(config, len(events), self.step - 1)]
        x_data = augment(batch, config, self.model.space, noise)
        level = stratified_levels(self.model.num_levels, x_data, noise)
        return self.plain.train_step(x_data, level, noise, config.chain.num_steps)


def compare_training() -> dict[str, Any]:
    """Return the seconds per step, medians of rounds taken in turns, and how loss and gradient differ at the first."""
    dataset = noise_dataset()
    plain = PlainTraining(BENCH_CONFIG, dataset)
    ours = {p: _steps(replace(BENCH_CONFIG, precision=p), dataset) for p in PRECISIONS}
    reference = next(plain)
    first = {p: next(run) for p, run in ours.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *PRECISIONS)}
    for _ in range(_ROUNDS):
        seconds["plain"].append(timed(lambda: next(plain)))
        for p in PRECISIONS:
            seconds[p] += [timed(lambda p=p: next(ours[p])) for _ in range(1 if p == "float32" else 2)]  # type: ignore[misc]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": medians,
        "loss_difference": {p: abs(e.loss - reference[0]) for p, e in first.items()},
        "gradient_norm_difference": {p: abs(e.gradient_norm / reference[1] - 1) for p, e in first.items()},
    }


def compare_sampling() -> dict[str, Any]:
    """Return the seconds of one batch's descent, in turns, and the largest difference of float32 from plain samples."""
    model = EnergyModel(BENCH_CONFIG, (3, 32, 32))
    plain = plain_copy(model, 3)
    settings = SamplingConfig(num_steps=_SAMPLING_STEPS)
    x_top = torch.randn(BENCH_CONFIG.pairs_per_step, 3, 32, 32, generator=make_generator(1))
    found: dict[str, Tensor] = {}

    def ours(precision: Precision) -> None:
        noise = SharedNoise(make_generator(2))
        found[precision] = descend(model, x_top, noise, settings, levels=(0,), precision=precision).levels[0]

    def theirs() -> None:
        found["plain"] = plain.sample(x_top, SharedNoise(make_generator(2)), _SAMPLING_STEPS)

    runs: dict[str, Callable[[], None]] = {"plain": theirs} | {p: partial(ours, p) for p in PRECISIONS}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    scale = float(found["plain"].abs().max())
    difference = {p: float((found[p] - found["plain"]).abs().max()) / scale for p in PRECISIONS}
    return {"seconds": {n: statistics.median(v) for n, v in seconds.items()}, "largest_difference": difference}


def growth() -> list[dict[str, Any]]:
    """Return the seconds of a bfloat16 step as one thing changes at a time."""
    small = replace(BENCH_CONFIG, precision="bfloat16", chain=ChainConfig(num_steps=10))
    cases: list[tuple[str, TrainConfig]] = [
        *((f"K = {k}", replace(small, chain=ChainConfig(num_steps=k))) for k in (5, 10, 20)),
        *((f"T = {t}", replace(small, schedule=ScheduleConfig(num_levels=t))) for t in (6, 12)),
        *((f"batch {b}", replace(small, batch_size=b)) for b in (4, 16)),
        *((f"width {w}", replace(small, network=NetworkConfig(num_blocks=2, width=w))) for w in (64, 192)),
    ]
    rows = []
    for name, config in cases:
        run = _steps(config, noise_dataset())
        next(run)
        seconds = min(timed(lambda run=run: next(run)) for _ in range(2))  # type: ignore[misc]
        rows.append({"case": name, "seconds": seconds, "flops": step_flops(config)})
    return rows


def surroundings(step_s: float) -> dict[str, float]:
    """Return the cost of all that is not the step, as shares of the time of the steps between two checkpoints.

    It is the batches; the checkpoint's copies, for which the training waits; and the checkpoint's way to disk and to a
    real store, which a thread takes beside the training (counted as if the training stood still meanwhile)."""
    dataset = noise_dataset()
    state = training.start(BENCH_CONFIG, dataset)

    def fetch() -> None:
        noise = SharedNoise(make_generator(0))
        batch = dataset.train[loop._batch_rows(BENCH_CONFIG, len(dataset.train), 3)]
        augment(batch, BENCH_CONFIG, state.model.space, noise)

    every = presets.preset("cifar10-t6").checkpoint_every
    snapshot_s = timed(state.snapshot)
    upload_s, size_bytes = upload(state)
    return {
        "batch": fastest(fetch) / step_s,
        "checkpoint": snapshot_s / every / step_s,
        "upload": upload_s / every / step_s,
        "snapshot_s": snapshot_s,
        "upload_s": upload_s,
        "checkpoint_bytes": size_bytes,
        "checkpoint_every": every,
    }


def upload(state: training.TrainState) -> tuple[float, int]:
    """Return the seconds to commit a checkpoint, with moments as in training, to SeaweedFS here, and its bytes."""
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.energy.optimizer.step()
    snapshot = state.snapshot()
    with tempfile.TemporaryDirectory() as directory, running_seaweedfs(Path(directory) / "weed") as server:
        folder = Path(directory) / "checkpoint"
        folder.mkdir()
        access, secret = SecretStr(ACCESS_KEY), SecretStr(SECRET_KEY)
        where = Settings(s3_endpoint_url=server.url, s3_bucket=BUCKET, s3_access_key=access, s3_secret_key=secret)
        artifacts = Artifacts.connect(where)

        def deliver() -> None:
            snapshot.write(folder)
            artifacts.commit_checkpoint(new_id(), 1, folder)

        return timed(deliver), sum(path.stat().st_size for path in folder.iterdir())


def memory() -> dict[str, float]:
    """Return the bytes that one more image adds to a step, by precision, as `batch_size: "auto"` measures it."""
    found: dict[str, float] = {}
    for p in PRECISIONS:  # each in a process of its own: memory that one has freed is at hand for the other
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[p] = pool.apply(row_bytes, [p])
    return found


def row_bytes(precision: Precision) -> float:
    """Return the bytes that one more image adds to a step, measured in this process."""
    step = TrialStep(replace(BENCH_CONFIG, precision=precision), noise_dataset(), "cpu")
    peaks_by_rows = [step.peak_bytes(rows) for rows in (32, 128)]  # with fewer, the chain's kernels are the peak
    return (peaks_by_rows[1] - peaks_by_rows[0]) / 96


def quality(steps: int = 980) -> dict[str, float]:
    """Return the Fréchet distances of 400 float32 samples from the held-out digits, after a short training in each."""
    digits = data.load("digits")
    real = digits.held_out[:].numpy()
    found = {"training digits": frechet_distance(real, digits.train[:400].numpy())}
    for p in PRECISIONS:
        config = presets.override(
            presets.preset("digits"),
            steps=steps,
            precision=p,
            sample_every=10**8,
            checkpoint_every=10**8,
            num_preview_samples=1,
        )
        with tempfile.TemporaryDirectory() as directory:
            for event in training.train(config, digits):
                if isinstance(event, CheckpointEvent):
                    event.write(Path(directory))
            found[p] = frechet_distance(real, sample(load_model(Path(directory)), 400, seed=0).x.numpy())
    return found


def main() -> None:
    """Measure everything, then print the tables and write the file."""
    console = Console()
    load_before = os.getloadavg()[0]
    measured = {p: peaks(dtype) for p, dtype in zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True)}
    train = _said(console, "training", compare_training)
    sampling = _said(console, "sampling", compare_sampling)
    step_s = train["seconds"]["bfloat16"]
    results = {
        "train_ratio_bf16": train["seconds"]["plain"] / step_s,
        "sample_ratio_bf16": sampling["seconds"]["plain"] / sampling["seconds"]["bfloat16"],
        "train_ratio_fp32": train["seconds"]["plain"] / train["seconds"]["float32"],
        "peak_share_bf16": step_flops(BENCH_CONFIG) / step_s / measured["bfloat16"][0],
        "peak_share_fp32": step_flops(BENCH_CONFIG) / train["seconds"]["float32"] / measured["float32"][0],
        "step_s": step_s,
        "step_flops": step_flops(BENCH_CONFIG),
        "peaks": {p: {"convolution": conv, "matmul": product} for p, (conv, product) in measured.items()},
        "train": train,
        "sampling": sampling,
        "memory_per_image_bytes": _said(console, "memory", memory),
        "surroundings": _said(console, "surroundings", lambda: surroundings(step_s)),
        "growth": _said(console, "growth", growth),
        "quality": _said(console, "quality", quality),
        "threads": torch.get_num_threads(),
        "instructions": instructions(),
        "load": [load_before, os.getloadavg()[0]],
    }
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    _print(console, results)


def _said(console: Console, name: str, measure: Callable[[], Any]) -> Any:
    """Measure a part, and print its result at once, because the whole takes minutes."""
    found = measure()
    console.print(f"{name}: {found} (load {os.getloadavg()[0]:.1f})", soft_wrap=True, highlight=False)
    return found


def _print(console: Console, results: dict[str, Any]) -> None:
    before, after = results["load"]
    having = ", ".join(results["instructions"])
    title = f"{results['threads']} threads with {having}; load {before:.1f} before and {after:.1f} after"
    headings = ("", "step, s", "images/s", "TFLOP/s", "of conv peak", "of matmul peak", "sampling, times plain")
    table = Table(*headings, title=title)
    plain_sampling = results["sampling"]["seconds"]["plain"]
    for name, seconds in results["train"]["seconds"].items():
        rate, peak = results["step_flops"] / seconds, results["peaks"]["bfloat16" if name == "bfloat16" else "float32"]
        table.add_row(
            name,
            f"{seconds:.2f}",
            f"{BENCH_CONFIG.pairs_per_step / seconds:.2f}",
            f"{rate / 1e12:.3f}",
            f"{rate / peak['convolution']:.0%}",
            f"{rate / peak['matmul']:.0%}",
            f"{plain_sampling / results['sampling']['seconds'][name]:.2f}",
        )
    console.print(table)
    train = results["train"]
    for p in PRECISIONS:
        console.print(
            f"{p}, first step beside plain: loss {train['loss_difference'][p]:.1e} apart, gradient norm "
            f"{train['gradient_norm_difference'][p]:.1e}; samples {results['sampling']['largest_difference'][p]:.1e}"
        )
    around = results["surroundings"]
    console.print(
        f"of a step's time: batch and augmentation {around['batch']:.2%}, copies for a checkpoint "
        f"({around['snapshot_s']:.2f} s every {around['checkpoint_every']} steps) {around['checkpoint']:.4%}, its way "
        f"to the store beside it ({around['checkpoint_bytes'] / 2**20:.0f} MiB in {around['upload_s']:.2f} s) "
        f"{around['upload']:.4%}"
    )
    by_image = results["memory_per_image_bytes"]
    told = ", ".join(f"{by_image[p] / 2**20:.1f} MiB in {p}" for p in PRECISIONS)
    console.print(f"memory that one more image takes: {told}")
    table = Table("bfloat16, K = 10 unless said", "step, s", "TFLOP/s", title="How cost grows")
    for row in results["growth"]:
        table.add_row(row["case"], f"{row['seconds']:.2f}", f"{row['flops'] / row['seconds'] / 1e12:.3f}")
    console.print(table)
    told = ", ".join(f"{name} {value:.3f}" for name, value in results["quality"].items())
    console.print(f"Fréchet distance from held-out digits after a fifth of the preset's training: {told}")


if __name__ == "__main__":
    main()

"""CIFAR-10-shaped training and sampling on a CUDA device: `make bench-gpu`; one plain line where there is none.

Prints images/s and the share of the device's measured matrix peak, of training in both precisions and of one gradient
evaluation in the chain three ways: as it is, through `torch.compile`, and replayed from a CUDA graph. Then what a stop
and a resume cost, and what memory is left when the training is gone.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from model import training
from model.checkpoint import read_snapshot
from model.config import TrainConfig
from model.energy import energy_and_score
from model.energy_model import EnergyModel
from model.events import CheckpointEvent, DoneEvent, StepEvent
from tests.bench.train import BENCH_CONFIG, PRECISIONS, forward_flops, noise_dataset, step_flops

_BATCH = 256
_STEPS = 6


def seconds(fn: Callable[[], Any], calls: int = 10) -> float:
    """Of one call, on the device, after two to warm up."""
    for _ in range(2):
        fn()
    torch.cuda.synchronize()
    since = time.perf_counter()
    for _ in range(calls):
        fn()
    torch.cuda.synchronize()
    return (time.perf_counter() - since) / calls


def matrix_peak() -> float:
    """FLOP/s of a large bfloat16 product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds(lambda: a @ b)


def graphed(evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], y: Tensor) -> Callable[[], None]:
    """A replay of `evaluate` at a fixed place in memory (torch's recipe: warm up on a side stream, then capture)."""
    place = y.clone()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            evaluate(place)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        evaluate(place)
    return graph.replay


def chain(console: Console, peak: float) -> None:
    """One gradient evaluation of `_BATCH` chains, three ways."""
    model = EnergyModel(BENCH_CONFIG, (3, 32, 32)).cuda()
    y = torch.randn(_BATCH, 3, 32, 32, device="cuda")
    level = torch.arange(_BATCH, device="cuda") % model.num_levels
    flops = 2 * _BATCH * forward_flops(BENCH_CONFIG)
    compiled = torch.compile(model.energy)
    for precision in PRECISIONS:
        with model.frozen(precision):
            ways: dict[str, Callable[[], Any]] = {
                "eager": lambda: energy_and_score(lambda x: model.energy(x, level), y),
                "CUDA graph": graphed(lambda x: energy_and_score(lambda z: model.energy(z, level), x), y),
                "torch.compile": lambda: energy_and_score(lambda x: compiled(x, level), y),
            }
            for name, evaluate in ways.items():
                since = time.perf_counter()
                evaluate()
                torch.cuda.synchronize()
                first, each = time.perf_counter() - since, seconds(evaluate)
                images = _BATCH / each / (BENCH_CONFIG.sampling.num_steps * model.num_levels)
                console.print(
                    f"chain, {precision}, {name}: {1e3 * each:.2f} ms an evaluation, {images:.1f} samples/s, "
                    f"{flops / each / peak:.0%} of peak, first call {first:.1f} s"
                )


def train(console: Console, config: TrainConfig, peak: float) -> None:
    """Steps, a stop, a resume; then nothing may be left on the device."""
    dataset, before = noise_dataset(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    polls = itertools.count()
    with tempfile.TemporaryDirectory() as directory:
        rates = []
        for event in training.train(config, dataset, device="cuda", stop_fn=lambda: next(polls) >= _STEPS):
            if isinstance(event, StepEvent):
                rates.append(event.steps_per_second)
            elif isinstance(event, CheckpointEvent):
                event.write(Path(directory))
        resumed = replace(config, steps=_STEPS + 1)
        *_, done = training.train(resumed, dataset, snapshot=read_snapshot(Path(directory)), device="cuda")
    assert isinstance(done, DoneEvent)
    assert done.step == _STEPS + 1
    rate, used = max(rates), torch.cuda.max_memory_allocated() / 2**30
    del event
    gc.collect()
    torch.cuda.empty_cache()
    console.print(
        f"training, {config.precision}: {rate * config.pairs_per_step:.1f} images/s, "
        f"{rate * step_flops(config) / peak:.0%} of peak, {used:.2f} GiB at most; stopped at step {_STEPS}, "
        f"resumed to {done.step}; "
        f"{(torch.cuda.memory_allocated() - before) / 2**20:.1f} MiB left behind"
    )


def main() -> None:
    """All of it, or the plain message."""
    console = Console()
    if not torch.cuda.is_available():
        console.print("bench-gpu: this machine has no CUDA device that torch can use; nothing was measured")
        return
    peak = matrix_peak()
    console.print(f"{torch.cuda.get_device_name()}: {peak / 1e12:.0f} TFLOP/s of bfloat16 matrix products")
    for precision in PRECISIONS:
        train(console, replace(BENCH_CONFIG, batch_size=_BATCH, precision=precision, num_preview_samples=1), peak)
    chain(console, peak)


if __name__ == "__main__":
    main()

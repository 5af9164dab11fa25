"""Measures CIFAR-10-shaped training and sampling on a CUDA device: `make bench-gpu`.

Without a device it prints one plain line. Else it prints images/s and the share of the device's measured matrix peak,
for training in both precisions, for whole samplings with noise from one generator and, as requests get them, from one a
chain, and for one gradient evaluation in the chain three ways: as it is, replayed from a CUDA graph, and through
`torch.compile`. It also prints what a stop and a resume cost, what memory is left when the training is gone, and what
batch "auto" becomes. A way that fails is reported in a line, and after seven minutes nothing new is begun.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from model import training
from model.chains.sampling import descend
from model.checkpoints.checkpoint import read_snapshot
from model.conditions import At
from model.config import Precision, SamplingConfig, TrainConfig
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.events import CheckpointEvent, DoneEvent, StepEvent
from model.noise import ChainNoise, NoiseSource, SharedNoise, make_generator
from model.training.memory import with_batch_size
from model.training.ranks import ALONE
from tests.bench.train import BENCH_CONFIG, PRECISIONS, forward_flops, noise_dataset, step_flops

_BATCH = 256
_STEPS = 6
_TIME_S = 420.0
_SAMPLING_STEPS = 5
"""at each level; the time per gradient evaluation does not depend on it"""


def seconds(fn: Callable[[], Any], calls: int = 10) -> float:
    """Return the seconds of one call on the device, after two calls to warm up."""
    for _ in range(2):
        fn()
    torch.cuda.synchronize()
    since = time.perf_counter()
    for _ in range(calls):
        fn()
    torch.cuda.synchronize()
    return (time.perf_counter() - since) / calls


def matrix_peak() -> float:
    """Return the FLOP/s of a large bfloat16 product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds(lambda: a @ b)


def graphed(evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], y: Tensor) -> Callable[[], None]:
    """Return a replay of `evaluate` at a fixed place in memory.

    This is torch's recipe: warm up on a side stream, then capture.
    """
    place = y.clone()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            evaluate(place)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = evaluate(place)

    def replay() -> None:
        assert outputs  # what the graph writes, and `place`, must live as long as it
        assert place.is_cuda
        graph.replay()

    return replay


def chain(console: Console, peak: float, precision: Precision, model: EnergyModel) -> None:
    """Measure one gradient evaluation of `_BATCH` chains in three ways."""
    y = torch.randn(_BATCH, 3, 32, 32, device="cuda")
    level = torch.arange(_BATCH, device="cuda") % model.num_levels
    flops = 2 * _BATCH * forward_flops(BENCH_CONFIG)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        return energy_and_score(lambda z: model.energy(z, At(level)), x)

    def compiled() -> Callable[[], Any]:
        energy = torch.compile(model.energy)
        return lambda: energy_and_score(lambda x: energy(x, At(level)), y)

    ways: dict[str, Callable[[], Callable[[], Any]]] = {
        "eager": lambda: lambda: evaluate(y),
        "CUDA graph": lambda: graphed(evaluate, y),
        "torch.compile": compiled,
    }
    with model.frozen(precision):
        evaluate(y)  # the fixed weights are made by the first evaluation, which no graph may hold
        for name, make in ways.items():
            try:
                since = time.perf_counter()
                run = make()
                run()
                torch.cuda.synchronize()
                first, each = time.perf_counter() - since, seconds(run)
            except Exception as error:  # an error of a compiler or driver; the other ways are still worth knowing
                torch.cuda.synchronize()
                console.print(f"chain, {precision}, {name}: did not work: {type(error).__name__}: {str(error)[:200]}")
                continue
            images = _BATCH / each / (BENCH_CONFIG.sampling.num_steps * model.num_levels)
            console.print(
                f"chain, {precision}, {name}: {1e3 * each:.2f} ms an evaluation, {images:.1f} samples/s, "
                f"{flops / each / peak:.0%} of peak, first call {first:.1f} s"
            )


def sampling(console: Console, precision: Precision, model: EnergyModel) -> None:
    """Measure whole descents of `_BATCH` samples, noise included."""
    x_top = torch.randn(_BATCH, 3, 32, 32, device="cuda")
    settings = SamplingConfig(num_steps=_SAMPLING_STEPS)
    sources: dict[str, Callable[[], NoiseSource]] = {
        "one generator": lambda: SharedNoise(make_generator(0, device="cuda")),
        "a generator a chain": lambda: ChainNoise(0, range(_BATCH)),
    }
    for name, make in sources.items():
        each = seconds(lambda make=make: descend(model, x_top, make(), settings, precision=precision), calls=2)  # type: ignore[misc]
        images = _BATCH / each * _SAMPLING_STEPS / BENCH_CONFIG.sampling.num_steps
        console.print(f"sampling, {precision}, {name}: {images:.1f} samples/s at K = {BENCH_CONFIG.sampling.num_steps}")


def train(console: Console, config: TrainConfig, peak: float) -> None:
    """Measure steps, a stop and a resume; after that, nothing may be left on the device."""
    dataset, before = noise_dataset(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    polls = itertools.count()
    rates, stop_s, asked_at = [], 0.0, 0.0

    def stop() -> bool:
        nonlocal asked_at
        asked_at = time.perf_counter()
        return next(polls) >= _STEPS

    with tempfile.TemporaryDirectory() as directory:
        for event in training.train(config, dataset, device="cuda", stop_fn=stop):
            if isinstance(event, StepEvent):
                rates.append(event.steps_per_second)
            elif isinstance(event, CheckpointEvent):
                event.write(Path(directory))
                stop_s = time.perf_counter() - asked_at
        since = time.perf_counter()
        resumed = replace(config, steps=_STEPS + 1)
        *_, done = training.train(resumed, dataset, snapshot=read_snapshot(Path(directory)), device="cuda")
    assert isinstance(done, DoneEvent)
    assert done.step == _STEPS + 1
    resume_s = time.perf_counter() - since
    rate, used = max(rates), torch.cuda.max_memory_allocated() / 2**30
    del event
    gc.collect()
    torch.cuda.empty_cache()
    console.print(
        f"training, {config.precision}: {rate * config.pairs_per_step:.1f} images/s, "
        f"{rate * step_flops(config) / peak:.0%} of peak, {used:.2f} GiB at most; stopped at step {_STEPS} and stored "
        f"in {stop_s:.1f} s, resumed to {done.step} in {resume_s:.1f} s; "
        f"{(torch.cuda.memory_allocated() - before) / 2**20:.1f} MiB left behind"
    )


def automatic(console: Console, precision: Precision) -> None:
    """Print what batch "auto" becomes on this device."""
    config = replace(BENCH_CONFIG, batch_size="auto", precision=precision)
    decided, found = with_batch_size(config, noise_dataset(), "cuda", ALONE)
    assert found is not None
    console.print(
        f"batch, {precision}: {found.row_bytes / 2**20:.1f} MiB an image, {found.free_bytes / 2**30:.1f} GiB free; "
        f"'auto' becomes {decided.batch_size}, {decided.microbatch_size or 'all'} at once"
    )


def parts(console: Console, peak: float) -> Iterator[Callable[[], None]]:
    """Yield the parts that are measured, the most wanted first."""
    for p in reversed(PRECISIONS):
        config = replace(BENCH_CONFIG, batch_size=_BATCH, precision=p, num_preview_samples=1)
        yield lambda config=config: train(console, config, peak)  # type: ignore[misc]
    model = EnergyModel(BENCH_CONFIG, (3, 32, 32)).cuda()
    for p in reversed(PRECISIONS):
        yield lambda p=p: sampling(console, p, model)  # type: ignore[misc]
        yield lambda p=p: automatic(console, p)  # type: ignore[misc]
    for p in reversed(PRECISIONS):
        yield lambda p=p: chain(console, peak, p, model)  # type: ignore[misc]


def main() -> None:
    """Measure all parts, or say that there is no device."""
    console = Console(soft_wrap=True, highlight=False)
    if not torch.cuda.is_available():
        console.print("bench-gpu: this machine has no CUDA device that torch can use; nothing was measured")
        return
    give_up_at = time.monotonic() + _TIME_S
    peak = matrix_peak()
    console.print(f"{torch.cuda.get_device_name()}: {peak / 1e12:.0f} TFLOP/s of bfloat16 matrix products")
    # Libraries take their workspaces at the first step and keep them: they are no training's to give back.
    warm_up = replace(BENCH_CONFIG, steps=1, num_preview_samples=1)
    for _ in training.train(warm_up, noise_dataset(), device="cuda"):
        pass
    for part in parts(console, peak):
        if time.monotonic() > give_up_at:
            console.print(f"bench-gpu: {_TIME_S:.0f} s are over; what is missing above was not measured")
            return
        part()


if __name__ == "__main__":
    main()

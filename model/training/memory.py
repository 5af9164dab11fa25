"""Measures how much of a device's memory a training step takes, and chooses the batch that fits into what is free.

A step of one row is tried, then steps of twice as many rows, as long as the next is expected to fit. What a row adds
are the activations kept for the gradient by the weights; the chain keeps nothing, so that one of its steps stands for
all.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from model.conditions import At
from model.config import AUTO_BATCH_SIZES, TrainConfig
from model.data.datasets import Dataset
from model.energies.energy_model import EnergyModel
from model.errors import ConfigError
from model.events import BatchEvent, Phase
from model.noise import SharedNoise, make_generator
from model.rows import Rows
from model.training.objective import Objective, stratified_levels
from model.training.ranks import Ranks
from model.training.state import class_names

_GPU_SHARE, _CPU_SHARE = 0.85, 0.5
"""The share of the free memory that a step may take: a GPU is this process's own, other processes use a machine's."""
_NUM_MOMENTS = 2
"""The number of tensors of the parameters' size that Adam makes at its first step."""


def with_batch_size(
    config: TrainConfig, dataset: Dataset, device: str, ranks: Ranks
) -> tuple[TrainConfig, BatchEvent | None]:
    """Return `config` with its batch size decided, and what was measured.

    A configuration whose batch size is a number is returned as it is, with None. All ranks must call this together.
    Raises ConfigError if not even one item fits.
    """
    if config.batch_size != "auto":
        return config, None
    most = min(-(-AUTO_BATCH_SIZES[1] // ranks.count), config.microbatch_size or AUTO_BATCH_SIZES[1])
    step = TrialStep(config, dataset, device)
    free = free_bytes(device) // (1 if step.on_gpu else ranks.count)
    budget = (_GPU_SHARE if step.on_gpu else _CPU_SHARE) * free - step.moment_bytes
    fitting, row_bytes = most_rows(step.peak_bytes, budget, most)
    fitting = ranks.least(fitting)
    if fitting == 0:
        raise ConfigError(
            f"batch_size is 'auto', but a step with one item takes more than the {max(0.0, budget) / 2**20:,.0f} MiB "
            f"that may be used on {device}; use a smaller network.width, or another device"
        )
    decided = with_rows(config, fitting, ranks.count)
    event = BatchEvent(
        batch_size=decided.pairs_per_step,
        microbatch_size=decided.microbatch_size,
        row_bytes=round(row_bytes),
        free_bytes=free,
    )
    return decided, event


def with_rows(config: TrainConfig, num_rows: int, num_ranks: int) -> TrainConfig:
    """Return `config` with the batch size for `num_ranks` processes that each hold `num_rows` rows at once.

    The batch is what all of them hold together, rounded down to a power of two and within AUTO_BATCH_SIZES. If a phase
    has larger batches than that, `microbatch_size` makes each process compute its rows in several pieces.
    """
    least, largest = AUTO_BATCH_SIZES
    size = max(least, min(largest, 2 ** ((num_rows * num_ranks).bit_length() - 1)))
    decided = replace(config, batch_size=size)
    if num_rows < -(-decided.largest_batch_size // num_ranks):
        decided = replace(decided, microbatch_size=num_rows)
    return decided


def most_rows(peak_fn: Callable[[int], float], budget: float, most: int) -> tuple[int, float]:
    """Return the largest number of rows whose `peak_fn`, in bytes, is within `budget`, and the bytes that a row adds.

    The number is a power of two up to `most`, or 0 if not even one row fits. A size is not tried if twice the last
    growth would put it beyond the budget; what is tried never takes more than twice what fitted, whichever part of a
    step is then the largest.
    """
    rows, fitting = 1, 0
    row_bytes = peak = peak_fn(rows)
    while peak <= budget:
        fitting = rows
        if 2 * rows > most or peak + rows * row_bytes > budget:
            break
        rows, before = 2 * rows, peak
        peak = peak_fn(rows)
        if peak < math.inf:
            row_bytes = max(0.0, (peak - before) / (rows - rows // 2))
    return fitting, row_bytes


class TrialStep:
    """Computes the gradient of a training step on random weights, to measure its memory and not for its result."""

    def __init__(self, config: TrainConfig, dataset: Dataset, device: str) -> None:
        chain = replace(config.chain, num_steps=min(1, config.chain.num_steps))
        with torch.random.fork_rng(devices=[]):
            model = EnergyModel(replace(config, chain=chain), dataset.event_shape, class_names(config, dataset)).to(
                device
            )
        model.network.precision = config.precision
        self.on_gpu = device.startswith("cuda")
        self.moment_bytes = _NUM_MOMENTS * sum(p.numel() * p.element_size() for p in model.parameters())
        self._objective, self._events, self._device = Objective(model), dataset.train, device
        last_matching = config.score_matching.steps
        taken = {"score_matching": last_matching > 0, "recovery": last_matching < config.steps}
        self._phases: list[Phase] = [phase for phase in get_args(Phase) if taken[phase]]
        self._run(1)  # libraries set themselves up at the first step, which is not to be measured
        self._resident = 0 if self.on_gpu else _status_bytes("VmRSS")

    def peak_bytes(self, num_rows: int) -> float:
        """Return the bytes that a step of `num_rows` takes at its peak beside the model; inf if it does not fit."""
        if not self.on_gpu:
            _reset_peak()
            self._run(num_rows)
            return max(0, _status_bytes("VmHWM") - self._resident)
        try:
            torch.cuda.reset_peak_memory_stats(self._device)
            before = torch.cuda.memory_allocated(self._device)
            self._run(num_rows)
            return torch.cuda.max_memory_allocated(self._device) - before
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return math.inf

    def _run(self, num_rows: int) -> None:
        model, some = self._objective.model, torch.arange(num_rows) % len(self._events)
        x_data = self._events[some].to(self._device)
        noise = SharedNoise(make_generator(0, device=self._device))
        label = some.to(self._device) % len(model.class_names) if model.class_names else None
        at = At(stratified_levels(model.num_levels, x_data, noise), label)
        for phase in self._phases:
            self._objective(Rows.all_of(num_rows), x_data, at, noise, phase).loss.backward()
            model.zero_grad()


def free_bytes(device: str) -> int:
    """Return the bytes of memory that are free on a device. Raises ConfigError if they cannot be found out."""
    if device.startswith("cuda"):
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        free = _kilobytes("MemAvailable", Path("/proc/meminfo"))
    except OSError:
        raise ConfigError("batch_size is 'auto', which needs a GPU or Linux to measure memory; give a number") from None
    versions = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit, used in versions:
        with contextlib.suppress(OSError, ValueError):  # another version of control groups, or no limit
            free = min(free, _number(limit) - _number(used))
    return max(0, free)


def _number(name: str) -> int:
    return int((Path("/sys/fs/cgroup") / name).read_text())


def _kilobytes(name: str, path: Path) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{path} has no {name}")
    return 1024 * int(found[1])


def _status_bytes(name: str) -> int:
    return _kilobytes(name, Path("/proc/self/status"))


def _reset_peak() -> None:
    """Reset the process's peak of resident memory. Where that is not allowed, the peak of larger steps stays."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

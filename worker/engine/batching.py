"""How many chains a batch of the engine should hold: measured for each model, on the device that it is on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import structlog
import torch

from model.chains.descent import Chain, Descents
from model.energies.energy_model import EnergyModel

log = structlog.get_logger(__name__)

MAX_ROWS = 512
"""No larger batch is tried: on quiet cores a row of digits costs 6 to 10 % less in 512 than in 256 and up to 5 % less
again in 1,024, where every step takes twice as long; on busy ones no less."""
_WORTHWHILE_SHARE = 0.95
"""The smallest batch that reaches this share of the best rate is taken, since small batches answer sooner."""
_MEASUREMENTS = 5
_MEASURING_S = 0.1
"""After this time a batch is not measured once more."""
_LONGEST_STEP_S = 0.5
"""An evaluation that takes longer is not made larger: a new chain waits for it."""
_MEMORY_SHARE = 0.5
"""What share of the device's free memory one evaluation may take."""


def measured_batch(model: EnergyModel) -> tuple[int, float]:
    """Return the smallest batch whose rows cost hardly more than those of the best one that fits, and its rate.

    The rate is in gradient evaluations of rows a second.
    """
    rates: dict[int, float] = {}
    for rows in _doubling(MAX_ROWS):
        probe = Descents(model, rows)
        probe.add([Chain(0, index, model.config.sampling) for index in range(rows)])
        elapsed_s, used_bytes = _measure(probe)
        rates[rows] = rows / elapsed_s
        if elapsed_s > _LONGEST_STEP_S or 2 * used_bytes > _MEMORY_SHARE * _free_bytes(model):
            break
    best = min(rows for rows, rate in rates.items() if rate >= _WORTHWHILE_SHARE * max(rates.values()))
    log.info("batch_measured", rows=best, rows_per_second=round(rates[best]))
    return best, rates[best]


def _doubling(most: int) -> Iterator[int]:
    rows = 1
    while rows <= most:
        yield rows
        rows *= 2


def _measure(probe: Descents) -> tuple[float, int]:
    """(seconds, bytes of device memory) of one evaluation: the shortest of several, since other processes only add."""
    probe.evaluate(probe.num_rows)  # warms up
    shortest_s, used_bytes, give_up_at = float("inf"), 0, time.perf_counter() + _MEASURING_S
    for _ in range(_MEASUREMENTS):
        elapsed_s, used_bytes = _measure_once(probe)
        shortest_s = min(shortest_s, elapsed_s)
        if time.perf_counter() > give_up_at:
            break
    return shortest_s, used_bytes


def _measure_once(probe: Descents) -> tuple[float, int]:
    device = probe.model.step_size.device
    if device.type != "cuda":
        began_at = time.perf_counter()
        probe.evaluate(probe.num_rows)
        return time.perf_counter() - began_at, 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before, began_at = torch.cuda.memory_allocated(device), time.perf_counter()
    probe.evaluate(probe.num_rows)
    torch.cuda.synchronize(device)
    return time.perf_counter() - began_at, torch.cuda.max_memory_allocated(device) - before


def _free_bytes(model: EnergyModel) -> float:
    device = model.step_size.device
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")

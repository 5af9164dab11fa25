"""Measures models of pictures: `make bench-images` prints figures as they come, and writes bench-results/images.json.

Each part can run alone, by `python -m tests.bench.images --only PART …`: it then takes what trainings of an earlier run
left in bench-results/models/, while a run of everything trains everything anew. The file is written after each part.
Trainings run two at a time on one thread each, and everything else on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from model import presets
from tests.bench import labelled, time_split, trainings, under_load
from tests.bench.frontier import cheap_enough, digits_frontier, engine_ratio

TellFn = Callable[[str], None]
RESULTS = Path("bench-results/images.json")
_SEEDS = range(5)


def _digits(tell_fn: TellFn) -> dict[str, Any]:
    """Return what samples of the digits cost (`tests.bench.frontier`)."""
    preset = presets.preset("digits")
    trainings.train_all({f"digits-digits-{seed}": replace(preset, seed=seed) for seed in _SEEDS}, tell_fn)
    points = digits_frontier(_SEEDS, trainings.FOLDER)
    for point in points:
        tell_fn(str(point))
    rates = engine_ratio(trainings.load_trained(f"digits-digits-{_SEEDS[0]}"))
    tell_fn(f"samples a second in the engine: {rates}")
    return {
        "frontier": points,
        "few_evaluations": cheap_enough(points),
        "engine_ratio": rates["ratio"],
        "samples_per_s": rates,
    }


PARTS: dict[str, Callable[[TellFn], dict[str, Any]]] = {
    "digits": _digits,
    "conditional": labelled.measure,
    "composition": labelled.measure_composition,
    "time_split": time_split.measure,
    "under_load": under_load.measure,
}
"""What is measured, by the keys of the results."""


def main() -> None:
    """Measure the parts that were asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts, and keep the others' figures")
    chosen = parser.parse_args().only
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if chosen and RESULTS.exists() else {}
    if not chosen:
        shutil.rmtree(trainings.FOLDER, ignore_errors=True)
    console, began_s = Console(), time.monotonic()
    for part in chosen or PARTS:
        part_began_s = time.monotonic()

        def tell(line: str, part: str = part) -> None:
            console.print(f"{time.monotonic() - began_s:6.0f} s  {part}: {line}", soft_wrap=True, highlight=False)

        figures = PARTS[part](tell)
        results[part] = figures | {"seconds": round(time.monotonic() - part_began_s)}
        results["machine"] = _machine()
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"{(time.monotonic() - began_s) / 60:.1f} min; {RESULTS}")


def _machine() -> dict[str, Any]:
    return {"cpu": _cpu(), "cores": os.cpu_count(), "torch": torch.__version__, "load": os.getloadavg()[0]}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    has = torch.cpu.get_capabilities()
    known = {"AVX512": "avx512_f", "AVX512-BF16": "avx512_bf16", "AMX-BF16": "amx_bf16"}
    return ", ".join([*names[:1], *(name for name, key in known.items() if has.get(key))]) or platform.processor()


if __name__ == "__main__":
    main()

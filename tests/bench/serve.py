"""Measures how well the engine serves: `make bench-serve` prints ratios and writes bench-results/serve.json.

It is one run on one machine, with the whole stack (`recovery up`) on loopback: HTTP, queue, engine, PNG. The network is
that of the preset `digits`, untrained, which changes nothing about its speed; images take the 295 evaluations that were
its default once, so that figures of all versions compare. Beside it, on the same weights, it
measures the library drawing one image after the other without any service, the bare gradient evaluation, and the same
sampler behind LitServe with its dynamic batching (extra `bench`). Clients are closed loops: each asks again as soon as
it has its answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import torch
from rich.console import Console
from rich.table import Table

from model.chains.sampling import sample
from model.checkpoints.checkpoint import SAMPLING_FILES, load_model
from model.conditions import At
from model.config import SamplingConfig
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.presets import preset
from service.stack.local import LocalStack
from tests.servers import free_ports, wait_until
from tests.stored import store_untrained
from worker.connect import redis_client
from worker.queue.loads import fresh_loads
from worker.redis_keys import LOADS
from worker.settings import Settings
from worker.storage.artifacts import Artifacts

RESULTS = Path("bench-results/serve.json")
WINDOW_S = 20.0
ROUNDS = 4
BATCHES = (128, 256, 512, 1024)
BodyFn = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Load:
    """The answers and times that closed-loop clients saw."""

    clients: int
    images_per_s: float
    p50_s: float
    p95_s: float
    refused: int


async def _closed_loop(url: str, clients: int, body_fn: BodyFn, path: str, window_s: float) -> Load:
    latencies: list[float] = []
    images, refused, number = 0, 0, 0
    began_at = time.perf_counter()

    async def client(http: httpx2.AsyncClient) -> None:
        nonlocal images, refused, number
        while time.perf_counter() - began_at < window_s:
            number += 1
            body = body_fn(number)
            asked_at = time.perf_counter()
            answer = await http.post(path, json=body, headers={"Accept": "image/png"})
            if answer.status_code == 429:
                refused += 1
                await asyncio.sleep(float(answer.headers["Retry-After"]))
                continue
            answer.raise_for_status()
            latencies.append(time.perf_counter() - asked_at)
            images += body.get("num_images", 1)

    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    elapsed_s = time.perf_counter() - began_at
    ordered = sorted(latencies)
    return Load(clients, images / elapsed_s, statistics.median(ordered), ordered[int(0.95 * len(ordered))], refused)


def closed_loop(url: str, clients: int, body_fn: BodyFn, *, path: str = "/sample", window_s: float = WINDOW_S) -> Load:
    """Run `clients` that ask again at once, for `window_s`; the last answers are waited for and counted."""
    return asyncio.run(_closed_loop(url, clients, body_fn, path, window_s))


def one_image(model_id: str) -> BodyFn:
    """Return bodies of requests that each ask for one digit with a seed of its own."""
    return lambda number: {"model": model_id, "num_images": 1, "seed": number}


def mixed(model_ids: list[str]) -> BodyFn:
    """Return bodies of requests for 1, 8 and 64 images of the models in turn."""
    return lambda n: {"model": model_ids[n // 3 % len(model_ids)], "num_images": (1, 8, 64)[n % 3], "seed": n}


def one_at_a_time(model: EnergyModel, count: int) -> float:
    """Return the images per second of the library alone, without service or batching."""
    began_at = time.perf_counter()
    for seed in range(count):
        sample(model, 1, seed=seed)
    return count / (time.perf_counter() - began_at)


def bare_rate(model: EnergyModel, rows: int, evaluations: int = 30) -> float:
    """Return the row evaluations per second of the network's gradient and nothing else."""
    x, level = torch.randn(rows, *model.event_shape), torch.randint(0, model.num_levels, (rows,))
    conditional = model.conditional(x, At(level))
    energy_and_score(conditional, x)
    began_at = time.perf_counter()
    for _ in range(evaluations):
        energy_and_score(conditional, x)
    return evaluations * rows / (time.perf_counter() - began_at)


def bare_rates(model: EnergyModel, rounds: int = 2) -> dict[int, list[float]]:
    """Return `bare_rate` by the batch, measured in turns."""
    found: dict[int, list[float]] = {rows: [] for rows in BATCHES}
    with model.frozen():
        for rows in BATCHES * rounds:
            found[rows].append(bare_rate(model, rows))
    return found


def overhead(url: str, model_id: str, count: int = 15) -> tuple[float, float]:
    """Return (seconds outside the engine, seconds inside) of a request for one image: medians, with one client."""
    outside, inside = [], []
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
        for seed in range(count):
            asked_at = time.perf_counter()
            body = {"model": model_id, "num_images": 1, "seed": seed}
            answer = http.post("/sample", json=body, headers={"Accept": "image/png"})
            elapsed_s = time.perf_counter() - asked_at
            parts = dict(part.split(";dur=") for part in answer.headers["Server-Timing"].split(", "))
            inside.append(float(parts["compute"]) / 1000)
            outside.append(elapsed_s - inside[-1])
    return statistics.median(outside), statistics.median(inside)


class Occupancy:
    """The evaluations that the samplers of a stack have done, read from the loads that they publish."""

    def __init__(self, settings: Settings) -> None:
        self._redis = redis_client(settings)

    def totals(self) -> tuple[int, int, float]:
        """Return (batches, rows in them, the time at which the samplers said so)."""
        entries: Any = self._redis.hgetall(LOADS)
        loads = fresh_loads(entries)
        batches, rows = sum(load.num_evaluations for load in loads), sum(load.num_row_evaluations for load in loads)
        return batches, rows, max(load.told_at for load in loads)

    def over(self, run_fn: Callable[[], Load], window_s: float) -> tuple[Load, float, float]:
        """Run a load; return it with the row evaluations per second and the rows per batch meanwhile.

        Both are taken from when the engine is full until `window_s`.
        """
        found: list[tuple[int, int, float]] = []
        with _sampled(lambda: found.append(self.totals()), every_s=1.0):
            load = run_fn()
        inner = found[4 : int(window_s) - 1]
        (batches, rows, since), (later_batches, later_rows, until) = inner[0], inner[-1]
        return load, (later_rows - rows) / (until - since), (later_rows - rows) / max(1, later_batches - batches)


@dataclass(frozen=True)
class Utilisation:
    """The rate of the engine beside the rate that the network alone could have.

    The figures are means over rounds in which both were measured in turns, since a machine that other work slows now
    and then then slows both.
    """

    load: Load
    """The load of the last round."""
    rows_per_batch: float
    rows_per_s: float
    peak_rows_per_s: float
    """The rate of the network alone at its best batch."""
    bare_rows_per_s: dict[int, float]


def utilisation(occupancy: Occupancy, model: EnergyModel, load_fn: Callable[[float], Load]) -> Utilisation:
    """Measure the engine and the network alone in turns; `load_fn(window_s)` must keep the engine full."""
    bare = [bare_rates(model)]
    found = []
    for _ in range(ROUNDS):
        found.append(occupancy.over(lambda: load_fn(WINDOW_S), WINDOW_S))
        bare.append(bare_rates(model))
    by_batch = {rows: statistics.mean(rate for rates in bare for rate in rates[rows]) for rows in BATCHES}
    loads, rows_per_s, rows_per_batch = zip(*found, strict=True)
    return Utilisation(
        load=loads[-1],
        rows_per_batch=statistics.mean(rows_per_batch),
        rows_per_s=statistics.mean(rows_per_s),
        peak_rows_per_s=max(by_batch.values()),
        bare_rows_per_s=by_batch,
    )


@contextmanager
def _sampled(take_fn: Callable[[], None], every_s: float) -> Iterator[None]:
    import threading

    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(every_s):
            take_fn()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def settings_of(stack: LocalStack) -> Settings:
    """Return the settings of the stack's workers."""
    values = {name.removeprefix("RECOVERY_").lower(): text for name, text in stack.environment.items()}
    return Settings(**{name: text for name, text in values.items() if name in Settings.model_fields})  # type: ignore[arg-type]


def fetched(stack: LocalStack, model_id: str, directory: Path) -> EnergyModel:
    """Fetch the stack's model into this process, and to disk for LitServe."""
    Artifacts.connect(settings_of(stack)).fetch_checkpoint(model_id, None, directory, names=SAMPLING_FILES)
    return load_model(directory)


@contextmanager
def litserve(directory: Path, rows: int) -> Iterator[str]:
    """Run the same sampler behind LitServe, and yield its URL."""
    [port] = free_ports(1)
    command = [sys.executable, "-m", "tests.bench.litserve_digits", str(directory), str(port), str(rows)]
    with (directory.parent / "litserve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx2.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False

    try:
        wait_until(answers, "LitServe", every_s=0.3)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # LitServe's workers would outlive a SIGTERM
        process.wait()


def measure(stack: LocalStack, directory: Path, console: Console) -> dict[str, Any]:
    """Measure everything in one run."""
    torch.set_num_threads(1)
    config = replace(preset("digits"), sampling=SamplingConfig(start="neighbour", num_steps=20, denoise=True))
    model_ids = [store_untrained(Artifacts.connect(settings_of(stack)), config, seed) for seed in (0, 1)]
    model = fetched(stack, model_ids[0], directory / "model")
    occupancy = Occupancy(settings_of(stack))
    for model_id in model_ids:
        closed_loop(stack.url, 2, one_image(model_id), window_s=1)
    overhead_s, compute_s = overhead(stack.url, model_ids[0])
    alone = [one_at_a_time(model, 12)]
    console.print(f"overhead {overhead_s:.4f} s, compute {compute_s:.4f} s")
    loads = {f"engine_{n}": closed_loop(stack.url, n, one_image(model_ids[0])) for n in (1, 16, 64)}
    alone.append(one_at_a_time(model, 12))
    full = utilisation(
        occupancy, model, lambda window_s: closed_loop(stack.url, 32, mixed(model_ids[:1]), window_s=window_s)
    )
    loads["engine_mixed_32"] = full.load
    loads["engine_mixed_16"] = closed_loop(stack.url, 16, mixed(model_ids[:1]))
    loads["engine_mixed_two_models_16"] = closed_loop(stack.url, 16, mixed(model_ids))
    console.print(f"engine: {full.rows_per_s:.0f} rows/s of {full.peak_rows_per_s:.0f}", loads)
    with litserve(directory / "model", 64) as url:
        closed_loop(url, 4, one_image(""), path="/predict", window_s=2)
        for n in (1, 16, 64):
            loads[f"litserve_{n}"] = closed_loop(url, n, one_image(""), path="/predict")
        loads["litserve_mixed_16"] = closed_loop(url, 16, mixed([""]), path="/predict")
    one = statistics.mean(alone)
    results = {
        "throughput_ratio_16": loads["engine_16"].images_per_s / one,
        "throughput_ratio_64": loads["engine_64"].images_per_s / one,
        "overhead_s": overhead_s,
        "compute_s": compute_s,
        "utilisation": full.rows_per_s / full.peak_rows_per_s,
        "rows_per_batch": full.rows_per_batch,
        "row_evaluations_per_s": full.rows_per_s,
        "peak_row_evaluations_per_s": full.peak_rows_per_s,
        "bare_row_evaluations_per_s": full.bare_rows_per_s,
        "p50_s": loads["engine_64"].p50_s,
        "p95_s": loads["engine_64"].p95_s,
        "litserve_ratio": loads["engine_64"].images_per_s / loads["litserve_64"].images_per_s,
        "litserve_ratio_mixed": loads["engine_mixed_16"].images_per_s / loads["litserve_mixed_16"].images_per_s,
        "one_at_a_time_images_per_s": one,
        "loads": {name: asdict(load) for name, load in loads.items()},
    }
    _show(results, loads, console)
    return results


def _show(results: dict[str, Any], loads: dict[str, Load], console: Console) -> None:
    table = Table("load", "clients", "images/s", "p50, s", "p95, s", "refused", title="Closed-loop clients")
    for name, load in loads.items():
        numbers = (f"{load.images_per_s:.1f}", f"{load.p50_s:.2f}", f"{load.p95_s:.2f}", str(load.refused))
        table.add_row(name, str(load.clients), *numbers)
    console.print(table)
    for name, value in results.items():
        if isinstance(value, float):
            console.print(f"{name:<28} {value:.3f}", highlight=False)


def main() -> None:
    """Do one run, print the ratios and write the file."""
    console = Console()
    with tempfile.TemporaryDirectory() as directory, LocalStack(Path(directory) / "stack") as stack:
        results = measure(stack, Path(directory), console)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The demonstration `recovery demo`, which does the main job from end to end on the embedded stack.

It trains the `digits` preset over HTTP, follows its events, draws samples, and writes pictures and report.json.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from service.client import ClientError, Job, Recovery, progress
from service.client.events import Event
from service.client.samples import spread_levels
from service.commands import demo_report
from service.foreseen import ForeseenError
from service.stack.local import LocalStack
from service.work.images import encode_grid

PRESET = "digits"
TRAINING_SEED = 0
SAMPLE_SEEDS = (1, 2, 3, 4)
SAMPLES_PER_REQUEST = 200
PROGRESSIVE_SEED = 5
PROGRESSIVE_ROWS = 8
PROGRESSIVE_LEVELS = 11
_SCALE = 8


class DemoError(ForeseenError):
    """The demonstration did not get to its end. Its one sentence says where to look."""


@dataclass
class Demo:
    """One run of the demonstration, and the times it has measured so far."""

    out: Path
    console: Console
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the training request beside the preset; tests make the training short with them."""
    timings_s: dict[str, float] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Train, sample and evaluate; return the report. Raises DemoError, LocalStackError, ClientError."""
        self.out.mkdir(parents=True, exist_ok=True)
        began_at = time.perf_counter()
        # The folder is kept when the run fails, because the logs are in it.
        data = self.out / ".stack"
        shutil.rmtree(data, ignore_errors=True)
        with self.console.status("starting") as status:
            stack = LocalStack(data, report_fn=status.update)
            with self._timed("start"):
                stack.start()
        try:
            job, events, samples, sampling = self._use(stack)
        finally:
            stack.stop()
        shutil.rmtree(data, ignore_errors=True)
        demo_report.draw_training(events, self.out / "training.png")
        with self.console.status("comparing samples with held-out digits"), self._timed("evaluation"):
            figures = demo_report.evaluate(samples, self.out / "real.png", scale=_SCALE)
        self.timings_s["total"] = time.perf_counter() - began_at
        report = {
            **figures,
            "training": demo_report.describe_training(job),
            "sampling": sampling,
            "timings_s": {name: round(seconds, 2) for name, seconds in self.timings_s.items()},
            "versions": demo_report.versions(),
        }
        (self.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        return report

    def _use(self, stack: LocalStack) -> tuple[Job, list[Event], npt.NDArray[np.float32], dict[str, Any]]:
        with Recovery(stack.url) as client:
            try:
                job, events = self._train(client, stack)
                samples, sampling = self._sample(client, job)
            except ClientError:
                stack.require_alive()  # its error says more, if a process of the stack died
                raise
        return job, events, samples, sampling

    def _train(self, client: Recovery, stack: LocalStack) -> tuple[Job, list[Event]]:
        with self._timed("training"):
            job = client.train(PRESET, seed=TRAINING_SEED, name="demo", **self.overrides)
            told = f"training job {job.id} at {client.url}/jobs/{job.id}"
            self.console.print(told, highlight=False, soft_wrap=True)
            events = progress.show(client.events(job.id, idle_fn=stack.require_alive), self.console)
        job.refresh()
        if job.status != "succeeded":
            raise DemoError(f"the training job ended as {job.status}: {job.error}; logs are in {self.out}/.stack")
        return job, events

    def _sample(self, client: Recovery, job: Job) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        model, config = str(job.model_id), job.config or {}
        with self.console.status("drawing samples"), self._timed("sampling"):
            drawn = [client.sample(model, SAMPLES_PER_REQUEST, seed=seed) for seed in SAMPLE_SEEDS]
            levels = spread_levels(config["schedule"]["num_levels"], PROGRESSIVE_LEVELS)
            way = client.sample_png(model, PROGRESSIVE_ROWS, seed=PROGRESSIVE_SEED, levels=levels, scale=_SCALE)
        samples = np.concatenate([one.x for one in drawn])
        np.save(self.out / "samples.npy", samples)
        (self.out / "samples.png").write_bytes(encode_grid(samples[:64], scale=_SCALE, num_columns=8))
        (self.out / "progressive.png").write_bytes(way)
        return samples, {
            "model": drawn[0].model,
            "seeds": [one.seed for one in drawn],
            "samples_per_seed": SAMPLES_PER_REQUEST,
            "gradient_evaluations_per_sample": drawn[0].gradient_evaluations,
            "progressive_seed": PROGRESSIVE_SEED,
            "progressive_levels": sorted(levels, reverse=True),
        }

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began_at = time.perf_counter()
        yield
        self.timings_s[name] = time.perf_counter() - began_at

"""Make a stored folder of `recovery up` with the version that is imported, and what that version said of it.

    PYTHONPATH=CHECKOUT CHECKOUT/.venv/bin/python tests/data/folders/make.py NAME

writes NAME.tar.xz and NAME.json beside this file. It uses nothing of this repository but the `recovery` command and the
Python client, so that it also runs with an older version.
"""

from __future__ import annotations

import json
import lzma
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from service.client import Job, JobFailedError, Recovery

HERE = Path(__file__).parent
LEFT_OUT = ("logs", "spool", "lock", "ports.json", "datasets")
"""What a stack writes anew when it starts."""
TINY = {
    "schedule": {"num_levels": 3},
    "network": {"width": 4, "multipliers": [1], "num_blocks": 1, "head_width": 4},
    "chain": {"num_steps": 1},
    "sampling": {"num_steps": 1},
    "score_matching": {"steps": 10, "batch_size": 8},
    "batch_size": 8,
    "log_every": 5,
    "num_preview_samples": 4,
}
PLANAR = {**TINY, "network": {"width": 8, "num_blocks": 1, "level_width": 8, "fourier_features": 4}}
DIVERGING = {
    **TINY,
    "energy": "gaussian",
    "network": {"width": 8, "level_width": 0, "fourier_features": 0},
    "chain": {"kernel": "langevin", "num_steps": 1, "step_size": 0.1, "start": "neighbour", "target_acceptance": None},
    "score_matching": {"steps": 0, "form": "recovery", "noise_contrast": 0.0, "low_noise_tilt": 0.0},
    "optimizer": {"learning_rate": 1.0, "warmup_steps": 0, "cosine_decay": False, "max_gradient_norm": None},
}


def make(client: Recovery, directory: Path) -> dict[str, Any]:
    """Fill an empty stack, and return what it answers. One training is cancelled; one still runs when this returns."""
    failed = client.train("density-2d", config=DIVERGING, steps=60, calibrate=False, name="diverged")
    try:
        failed.wait()
    except JobFailedError:
        pass
    else:
        raise AssertionError("this training was to diverge")
    digits = client.train("digits", config=TINY, steps=20, seed=1, checkpoint_every=10, calibrate=True, name="digits")
    digits.wait()
    points = np.random.default_rng(0).normal([100.0, -5.0], [20.0, 0.5], (300, 2))
    np.savetxt(directory / "points.csv", points, delimiter=",", header="width,height", comments="")
    dataset = client.upload_dataset(directory / "points.csv", name="points")
    planar = client.train("density-2d", dataset=dataset.id, config=PLANAR, steps=20, calibrate=False, name="2-D")
    planar.wait()
    calibration = planar.model().calibrate(seed=3, num_chains=64, max_chains=256, name="calibration")
    calibration.wait()
    bulk = digits.model().sample_in_bulk(6, shard_images=4, seed=4, name="bulk")
    bulk.wait()
    endless: dict[str, Any] = {"config": TINY, "steps": 1_000_000, "checkpoint_every": 1_000_000, "calibrate": False}
    cancelled = client.train("digits", **endless, seed=5, name="cancelled")
    follow_to_a_step(cancelled)
    cancelled.cancel()
    for _ in cancelled.events():
        pass
    stopped = client.train("digits", **endless, seed=6, name="stopped")
    follow_to_a_step(stopped)

    jobs = [digits, planar, calibration, bulk, failed, cancelled, stopped]
    for job in jobs:
        job.refresh()
    models = [
        client.model(model_id).model_dump(mode="json") | answers(client, model_id, x)
        for model_id, x in (
            (str(digits.model_id), np.linspace(-1, 1, 128).reshape(2, 1, 8, 8)),
            (str(planar.model_id), points[:3]),
        )
    ]
    shards = client.shards(bulk.id)["shards"]
    return {
        "jobs": [job.model_dump(mode="json") for job in jobs],
        "datasets": [dataset.model_dump(mode="json")],
        "models": models,
        "shards": {"job": bulk.id, "names": [shard["name"] for shard in shards]},
    }


def answers(client: Recovery, model_id: str, x: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Samples of a seed, and log densities of points."""
    return {
        "samples": {"seed": 7, "x": client.sample(model_id, 2, seed=7).x.tolist()},
        "densities": {"x": x.tolist(), "log_density": client.log_density(model_id, x).log_density.tolist()},
    }


def follow_to_a_step(job: Job) -> None:
    """Follow a job until it has trained a little."""
    next(event for event in job.events() if event["type"] == "step")


def main(name: str) -> None:
    """Start a stack, fill it, stop it and pack its folder."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        command = [sys.executable, "-u", "-m", "service.cli", "up", "--data", str(data)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stack:
            try:
                assert stack.stdout is not None
                url = next(found[1] for line in stack.stdout if (found := re.search(r"ready at (\S+)", line)))
                with Recovery(url) as client:
                    told = make(client, Path(directory))
            finally:
                stack.send_signal(signal.SIGTERM)
        (HERE / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")
        with lzma.open(HERE / f"{name}.tar.xz", "w", preset=9) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
            for path in sorted(data.iterdir()):
                if path.name not in LEFT_OUT:
                    tar.add(path, path.name)


if __name__ == "__main__":
    main(sys.argv[1])

"""Densities on the real stack, over HTTP: calibrated by a training or a job, the same numbers as the library's."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model import data
from model.checkpoints.checkpoint import load_model
from model.densities.density import bits_per_dim, log_density
from service.client import Job, Recovery, RefusedError
from service.work.images import encode_png
from tests.stack import TINY, UpCommand
from worker.storage.artifacts import Artifacts

pytestmark = pytest.mark.timeout(240)


def _finish(recovery: Recovery, job: Job) -> Job:
    """The job, once it has succeeded."""
    for _ in recovery.events(job["id"]):
        pass
    ended = recovery.job(job["id"])
    assert ended["status"] == "succeeded", ended["error"]
    return ended


def _calibration(recovery: Recovery, model_id: str) -> dict[str, Any]:
    found: dict[str, Any] = recovery.model(model_id)["checkpoints"][-1]["calibration"]
    return found


def test_a_model_that_its_training_calibrated_answers_with_the_librarys_numbers(
    recovery: Recovery, command: UpCommand, tmp_path: Path
) -> None:
    model_id = _finish(recovery, recovery.train(preset="digits", config=TINY, steps=20, seed=1, calibrate=True))[
        "model_id"
    ]
    calibration = _calibration(recovery, model_id)
    x = data.load("digits").held_out[:256]
    answer = recovery.log_density(model_id, x.numpy())

    Artifacts.connect(command.settings()).fetch_checkpoint(model_id, 20, tmp_path / "checkpoint")
    model = load_model(tmp_path / "checkpoint")
    expected = log_density(model, x, calibration["log_z"]["estimate"])
    served = torch.tensor([item["log_density"] for item in answer["items"]], dtype=torch.float64)
    torch.testing.assert_close(served, expected, atol=1e-5, rtol=0)
    bits = torch.tensor([item["bits_per_dim"] for item in answer["items"]], dtype=torch.float64)
    torch.testing.assert_close(bits, bits_per_dim(expected, 64, 1 / 8), atol=1e-6, rtol=0)
    assert answer["log_z"] == calibration["log_z"]
    assert calibration["num_held_out"] == 897

    drawn = recovery.sample(model_id, 2, seed=5).x
    pictures = [tmp_path / f"{index}.png" for index in range(2)]
    for path, image in zip(pictures, drawn, strict=True):
        path.write_bytes(encode_png(image))
    scored = recovery.log_density(model_id, pictures, path=True, num_paths=2, seed=3)
    rounded = torch.from_numpy(np.rint((drawn + 1) * 127.5) / np.float32(127.5) - 1)
    close = log_density(model, rounded, calibration["log_z"]["estimate"])
    assert [item["log_density"] for item in scored["items"]] == pytest.approx(close.tolist(), abs=1e-3)
    assert scored["items"] == recovery.log_density(model_id, pictures, path=True, num_paths=2, seed=3)["items"]
    assert all(np.isfinite(item["path_log_density"]) for item in scored["items"])


def test_an_uncalibrated_model_says_what_to_do_and_doing_it_helps(
    recovery: Recovery, command: UpCommand, tmp_path: Path
) -> None:
    tiny = {**TINY, "network": {"width": 8, "num_blocks": 1}, "calibrate": False}
    model_id = _finish(recovery, recovery.train(preset="density-2d", dataset="two_moons", config=tiny, steps=20))[
        "model_id"
    ]
    points = np.array([[0.0, 0.5], [1.0, -0.5]])
    with pytest.raises(RefusedError, match="POST /jobs/calibrate") as refusal:
        recovery.log_density(model_id, points)
    with pytest.raises(RefusedError, match="POST /jobs/calibrate"):
        recovery.density_png(model_id)

    job = _finish(recovery, recovery.calibrate(model_id, num_chains=128, max_bridges=2, max_chains=256))
    answer = recovery.log_density(model_id, points)
    np.save(tmp_path / "points.npy", points)
    line = [sys.executable, "-m", "service.cli", "log-density", model_id, str(tmp_path / "points.npy"), "--json"]
    told = subprocess.run([*line, "--url", command.url], capture_output=True, text=True, check=True, timeout=60).stdout

    assert refusal.value.status == 409
    assert (job["kind"], job["progress"]["percent"]) == ("calibrate", 100)
    assert answer["log_z"] == _calibration(recovery, model_id)["log_z"]
    assert [item["bits_per_dim"] for item in answer["items"]] == [None, None]
    assert json.loads(told)["items"] == answer["items"]
    with Image.open(io.BytesIO(recovery.density_png(model_id))) as picture:
        assert picture.format == "PNG"

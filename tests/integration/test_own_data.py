"""Own data on the real stack: uploaded, or in the server's folder; trained on by a real worker, and sampled."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.client import Job, Recovery, RefusedError
from tests.stack import TINY, UpCommand

pytestmark = pytest.mark.timeout(240)
_TINY_PLANAR = {**TINY, "network": {"width": 8, "num_blocks": 1}, "calibrate": True}


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Colour images of noise, some of them in a folder below."""
    generator = np.random.default_rng(0)
    for index in range(count):
        path = folder / ("sub" if index % 2 else ".") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)


def command_line(command: UpCommand, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The `recovery` command against the running stack."""
    line = [sys.executable, "-m", "service.cli", *arguments, "--url", command.url]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


def finished(recovery: Recovery, job: Job) -> Job:
    """The job, once it has succeeded."""
    for _ in recovery.events(job["id"]):
        pass
    ended = recovery.job(job["id"])
    assert ended["status"] == "succeeded", ended["error"]
    return ended


def test_a_folder_of_images_is_uploaded_trained_on_and_sampled(
    recovery: Recovery, command: UpCommand, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "pictures", 12, (7, 6))
    told = command_line(command, "datasets", "upload", str(tmp_path / "pictures"), "--name", "noise")
    dataset_id = told.stdout.strip()
    assert "12 images of shape 3×6×7" in told.stderr, told.stderr
    assert recovery.dataset(dataset_id)["name"] == "noise"
    assert recovery.upload_dataset(tmp_path / "pictures")["id"] == dataset_id

    job = finished(recovery, recovery.train(preset="digits", dataset=dataset_id, config=TINY, steps=15))

    assert recovery.model(job["model_id"])["dataset"] == dataset_id
    assert recovery.sample(job["model_id"], 2, seed=0).x.shape == (2, 3, 6, 7)
    assert recovery.datasets()[0]["id"] == dataset_id
    assert command_line(command, "datasets", "delete", dataset_id).stdout == f"deleted {dataset_id}\n"
    with pytest.raises(RefusedError, match="GET /datasets"):
        recovery.train(preset="digits", dataset=dataset_id)


def test_pictures_are_planned_by_the_trainer_for_the_time_that_is_given(
    recovery: Recovery, command: UpCommand, tmp_path: Path
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (24, 8, 9, 3), np.uint8)
    np.savez(tmp_path / "two.npz", x=pictures, y=np.arange(24) % 2)
    told = command_line(
        command, "train", "images", "--upload", f"{tmp_path}/two.npz", "--minutes", "0.2", "--set", "network.width=8"
    )
    job = finished(recovery, recovery.job(told.stdout.strip()))

    [plan] = [event["data"] for event in recovery.events(job["id"]) if event["type"] == "plan"]
    assert plan["minutes"] == 0.2
    assert any("2 classes" in reason for reason in plan["reasons"])
    # what was decided is what the job says and what was done
    assert job["config"]["steps"] == plan["steps"] == job["progress"]["total_steps"] == job["progress"]["step"]
    assert job["config"]["network"]["width"] == 8
    assert job["config"]["network"]["kind"] == "unet"
    assert recovery.model(job["model_id"])["config"] == job["config"]
    assert recovery.sample(job["model_id"], 2, seed=0).x.shape == (2, 3, 8, 9)


def test_rows_of_a_csv_get_a_density(recovery: Recovery, tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal([100.0, -5.0], [20.0, 0.5], (300, 2))
    with (tmp_path / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["width", "height"], *points.tolist()])
    dataset = recovery.upload_dataset(tmp_path / "points.csv")
    assert (dataset["kind"], dataset["count"], dataset["shape"]) == ("vectors", 300, [2])

    job = finished(recovery, recovery.train(preset="density-2d", dataset=dataset["id"], config=_TINY_PLANAR, steps=20))

    drawn = recovery.sample(job["model_id"], 64, seed=0).x
    assert 50 < drawn[:, 0].mean() < 150
    with Image.open(io.BytesIO(recovery.density_png(job["model_id"]))) as picture:
        assert picture.format == "PNG"


def test_a_folder_of_images_on_the_server_is_trained_on_by_its_name(recovery: Recovery, command: UpCommand) -> None:
    write_pictures(command.data / "datasets" / "ours", 8, (8, 8))
    assert "ours" in [one["id"] for one in recovery.datasets() if one["source"] == "folder"]

    job = finished(recovery, recovery.train(preset="digits", dataset="ours", config=TINY, steps=15))

    assert recovery.sample(job["model_id"], 1, seed=0).x.shape == (1, 3, 8, 8)
    (command.data / "datasets" / "ours" / "broken.png").write_text("not an image")
    job = recovery.train(preset="digits", dataset="ours", config=TINY, steps=15)
    for _ in recovery.events(job["id"]):
        pass
    ended = recovery.job(job["id"])
    assert (ended["status"], str(ended.error).split(":")[0]) == (
        "failed",
        "broken.png is not an image that can be read",
    )

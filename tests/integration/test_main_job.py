"""The main job on the real stack, over HTTP: train, follow, sample in every form, cancel, resume; what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from service.client import Job, Recovery, RefusedError
from tests.stack import TINY, UpCommand, follow_to_a_step
from worker.ids import new_id

STEPS = 30
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def job(command: UpCommand) -> Job:
    """A small training on the digits that has succeeded."""
    with Recovery(command.url) as client:
        made = client.train(preset="digits", config=TINY, steps=STEPS, seed=1, checkpoint_every=10, name="tiny")
        for _ in client.events(made["id"]):
            pass
        return client.job(made["id"])


def draw(command: UpCommand, accept: str, **request: Any) -> httpx2.Response:
    """A sample in that form."""
    headers = {"Accept": accept}
    answer = httpx2.post(f"{command.url}/sample", json=request, headers=headers, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer


def test_a_training_succeeds_and_says_what_it_did(recovery: Recovery, job: Job) -> None:
    events = list(recovery.events(job["id"]))
    kinds = [event["type"] for event in events]

    assert (job["status"], job["last_checkpoint"], job["progress"]["percent"]) == ("succeeded", STEPS, 100)
    assert {"status", "step", "sample", "checkpoint"} <= set(kinds)
    assert kinds[-1] == "status"
    steps = [event["data"] for event in events if event["type"] == "step"]
    assert steps[-1]["step"] == STEPS
    assert [data["phase"] for data in steps] == sorted((data["phase"] for data in steps), reverse=True)


def test_the_model_is_listed_with_its_checkpoints_and_grid(recovery: Recovery, command: UpCommand, job: Job) -> None:
    model = recovery.model(job["model_id"])
    grid = httpx2.get(f"{command.url}/models/{job['model_id']}/samples.png", trust_env=False)

    assert [checkpoint["step"] for checkpoint in model["checkpoints"]] == [10, 20, 30]
    assert model["job_id"] == job["id"]
    assert job["model_id"] in [one["id"] for one in recovery.models()]
    with Image.open(io.BytesIO(grid.content)) as picture:
        assert picture.format == "PNG"


def test_samples_come_in_every_form(command: UpCommand, job: Job) -> None:
    request = {"model": job["model_id"], "num_images": 4, "seed": 11}
    png = draw(command, "image/png", **request, scale=3)
    packed = draw(command, "application/zip", **request)
    plain = draw(command, "application/json", **request).json()
    array = np.load(io.BytesIO(draw(command, "application/x-npy", **request).content))

    with Image.open(io.BytesIO(png.content)) as picture:
        assert picture.size == (51, 51)
    assert png.headers["X-Model"] == f"{job['model_id']}@{STEPS}"
    assert int(png.headers["X-NFE"]) > 0
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert json.loads(archive.read("manifest.json"))["seed"] == 11
        assert len(archive.namelist()) == 5
    assert len(plain["images"]) == 4
    assert (array.shape, array.dtype) == ((4, 1, 8, 8), np.float32)
    assert np.isfinite(array).all()


def test_an_image_depends_on_its_seed_and_place_alone(recovery: Recovery, job: Job) -> None:
    few = recovery.sample(job["model_id"], 2, seed=5)
    many = recovery.sample(job["model_id"], 9, seed=5)
    other = recovery.sample(job["model_id"], 2, seed=6)

    np.testing.assert_allclose(few.x, many.x[:2], atol=1e-4)
    assert abs(few.x - other.x).max() > 0.1


def test_earlier_checkpoints_and_intermediate_levels_can_be_sampled(recovery: Recovery, job: Job) -> None:
    early = recovery.sample(f"{job['model_id']}@10", 3, seed=5, levels=[3, 1])

    assert early.model == f"{job['model_id']}@10"
    assert early.x.shape == (3, 1, 8, 8)
    assert early.levels is not None
    assert early.levels.shape == (2, 3, 1, 8, 8)


def test_a_model_of_vectors_answers_in_numbers(recovery: Recovery, command: UpCommand) -> None:
    tiny = {**TINY, "network": {"width": 8, "num_blocks": 1}, "calibrate": False}
    made = recovery.train(preset="density-2d", dataset="two_moons", config=tiny, steps=10)
    events = list(recovery.events(made["id"]))

    assert events[-1]["data"]["status"] == "succeeded", events[-1]
    values = draw(command, "*/*", model=made["model_id"], num_images=3).json()["values"]
    assert np.shape(values) == (3, 2)


def test_a_cancelled_job_stops_keeps_its_checkpoint_and_goes_on_when_asked(recovery: Recovery) -> None:
    made = recovery.train(preset="digits", config=TINY, steps=1_000_000, seed=2, checkpoint_every=1_000_000)
    at = follow_to_a_step(recovery, made["id"])
    recovery.cancel(made["id"])
    at = list(recovery.events(made["id"], after=at))[-1]["id"]
    stopped = recovery.job(made["id"])
    assert (stopped["status"], stopped["cancel_requested"]) == ("cancelled", True)
    done = stopped["last_checkpoint"]
    assert 0 < done < 1_000_000

    recovery.resume(made["id"], steps=done + 20)
    assert list(recovery.events(made["id"], after=at))

    finished = recovery.job(made["id"])
    assert (finished["status"], finished["last_checkpoint"]) == ("succeeded", done + 20)
    assert [c["step"] for c in recovery.model(made["model_id"])["checkpoints"]] == [done, done + 20]


def test_a_training_that_cannot_work_fails_with_a_reason(recovery: Recovery, command: UpCommand) -> None:
    folder = command.data / "datasets" / "mine"
    folder.mkdir()
    for name in ("cat.png", "dog.png"):
        (folder / name).write_text("this is no picture")

    made = recovery.train(preset="digits", config=TINY, dataset="mine", steps=10)
    for _ in recovery.events(made["id"]):
        pass

    job = recovery.job(made["id"])
    assert job["status"] == "failed"
    assert "cat.png" in job["error"]


@pytest.mark.parametrize(
    ("call", "status", "told"),
    [
        (lambda client: client.train(preset="dogits"), 422, "expected one of images, digits"),
        (lambda client: client.train(preset="digits", steps=0), 422, "greater than or equal to 1"),
        (lambda client: client.sample(new_id()), 404, "GET /models"),
        (lambda client: client.sample(new_id(), 100_000), 422, "less than or equal to 256"),
        (lambda client: client.job(new_id()), 404, "GET /jobs"),
        (lambda client: client.model("../jobs"), 404, "/docs"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(recovery: Recovery, call: Any, status: int, told: str) -> None:
    with pytest.raises(RefusedError, match=told) as caught:
        call(recovery)

    assert caught.value.status == status


def test_the_command_line_talks_to_the_stack(command: UpCommand, job: Job, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    lines = [["jobs"], ["models", "--json"], ["sample", job["model_id"], "-n", "4", "--out", str(out)]]
    runs = [
        subprocess.run(
            [sys.executable, "-m", "service.cli", *line, "--url", command.url],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        for line in lines
    ]

    assert [run.returncode for run in runs] == [0, 0, 0], [run.stderr for run in runs]
    assert job["model_id"] in [model["id"] for model in json.loads(runs[1].stdout)]
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_second_stack_on_the_same_folder_is_refused(command: UpCommand) -> None:
    second = UpCommand(command.data)

    assert second.process.wait(60) == 1
    second._reader.join()
    assert f"runs on {command.data} at {command.url}" in second.output

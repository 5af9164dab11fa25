"""A checkpoint of the authors' release on the real stack: imported by the command, then a model like any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch

from model.chains.sampling import sample
from model.checkpoints import official
from model.densities.density import log_density
from service.client import Recovery
from tests.model.checkpoints.official import CHECKPOINT
from tests.stack import UpCommand

pytestmark = pytest.mark.timeout(240)
SIZE = 8


def run(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`recovery import-official` into the stack on a folder."""
    line = [sys.executable, "-m", "service.cli", "import-official", *arguments, "--data", str(data)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def test_an_imported_checkpoint_is_listed_sampled_calibrated_and_scores(recovery: Recovery, command: UpCommand) -> None:
    told = run(command.data, str(CHECKPOINT), "--name", "authors", "--image-size", str(SIZE))
    assert told.returncode == 0, told.stderr
    model_id, found = told.stdout.strip(), told.stderr
    assert found.startswith("step 1234; width 16, multipliers (1, 2, 2, 2), 1 block a resolution; 6 levels")

    listed = next(model for model in recovery.models() if model["id"] == model_id)
    assert (listed["name"], listed["dataset"], listed["job_id"]) == ("authors", None, None)
    assert listed["origin"] == "imported from the authors' TensorFlow checkpoint official_tiny, step 1234"
    assert [checkpoint["step"] for checkpoint in listed["checkpoints"]] == [1234]
    grid = httpx2.get(f"{command.url}/models/{model_id}/samples.png", trust_env=False)
    assert (grid.status_code, grid.json()["type"]) == (404, "urn:recovery:problem:no-samples-yet")

    model = official.load(CHECKPOINT, image_size=SIZE)
    drawn = recovery.sample(model_id, 2, seed=7)
    assert drawn.model == f"{model_id}@1234"
    np.testing.assert_allclose(drawn.x, sample(model, 2, seed=7).x.numpy(), atol=1e-3)

    job = recovery.calibrate(model_id, num_chains=16, max_bridges=1, max_chains=16)
    assert [event["type"] for event in recovery.events(job["id"])].count("calibrated") == 1, recovery.job(job["id"])
    calibration = recovery.model(model_id)["checkpoints"][0]["calibration"]
    assert (calibration["num_held_out"], calibration["held_out_log_density"]) == (0, None)
    items = recovery.log_density(model_id, drawn.x)["items"]
    expected = log_density(model, torch.from_numpy(drawn.x), calibration["log_z"]["estimate"])
    assert [item["log_density"] for item in items] == pytest.approx(expected.tolist(), rel=1e-5)
    assert all(item["bits_per_dim"] is not None for item in items)


def test_a_dataset_of_another_shape_is_refused_before_the_chains(recovery: Recovery, command: UpCommand) -> None:
    told = run(command.data, str(CHECKPOINT), "--dataset", "digits", "--image-size", str(SIZE))
    job = recovery.calibrate(told.stdout.split()[0], num_chains=16, max_bridges=1, max_chains=16)
    kinds = [event["type"] for event in recovery.events(job["id"])]
    assert "calibration" not in kinds
    assert (
        "dataset 'digits' holds events of shape (1, 8, 8), the model's are of (3, 8, 8)"
        in recovery.job(job["id"])["error"]
    )


def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(
    recovery: Recovery, command: UpCommand, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    cut.with_name("cut.index").write_bytes(CHECKPOINT.with_name("official_tiny.index").read_bytes())
    values = CHECKPOINT.with_name("official_tiny.data-00000-of-00001").read_bytes()
    cut.with_name("cut.data-00000-of-00001").write_bytes(values[: len(values) // 2])
    before = recovery.models()
    for prefix, reason in ((cut, "is cut off"), (tmp_path / "absent", "there is no")):
        told = run(command.data, str(prefix))
        assert (told.returncode, told.stdout) == (1, "")
        assert told.stderr.startswith("recovery: ")
        assert reason in told.stderr
        assert len(told.stderr.splitlines()) == 1
    assert recovery.models() == before

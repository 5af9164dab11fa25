"""Folders that older versions of `recovery up` left behind (tests/data/folders) open in this one."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.client import Recovery
from tests.servers import wait_until
from tests.stack import UpCommand, follow_to_a_step

FOLDERS = Path(__file__).parents[1] / "data" / "folders"
VERSIONS = sorted(path.name.removesuffix(".tar.xz") for path in FOLDERS.glob("*.tar.xz"))
pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]
_TOLERANCE = 1e-3
"""Another processor rounds differently, and a chain carries that on."""


@pytest.fixture(scope="module", params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recovery, Any]]:
    """A client of this version on a copy of such a folder, and what the older version answered."""
    data = tmp_path_factory.mktemp(request.param) / "data"
    with tarfile.open(FOLDERS / f"{request.param}.tar.xz") as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # came with Python 3.11.4
        packed.extractall(data)
    command = UpCommand(data)
    try:
        with command.wait_until_ready() as client:
            yield client, json.loads((FOLDERS / f"{request.param}.json").read_text())
    finally:
        assert command.end() == 0, command.output


def test_there_is_a_folder_of_an_older_version() -> None:
    assert VERSIONS


def test_a_training_that_the_older_version_stopped_for_its_end_goes_on_by_itself(old: tuple[Recovery, Any]) -> None:
    recovery, told = old
    job = next(job for job in told["jobs"] if job["name"] == "stopped")
    gone_on = next(
        event for event in recovery.events(job["id"]) if event["type"] == "started" and event["data"]["step"] > 0
    )
    follow_to_a_step(recovery, job["id"], after=gone_on["id"])
    recovery.cancel(job["id"])
    started = [event["data"] for event in recovery.events(job["id"]) if event["type"] == "started"]
    assert started[0]["step"] == 0
    assert started[-1]["step"] > 0
    assert recovery.job(job["id"])["status"] == "cancelled"


def test_its_jobs_and_datasets_are_listed_as_they_were(old: tuple[Recovery, Any]) -> None:
    recovery, told = old
    jobs = {job["id"]: job for job in recovery.jobs()}
    assert jobs.keys() == {job["id"] for job in told["jobs"]}
    for expected in told["jobs"]:
        if expected["name"] == "bulk":
            expected["seed"] = 4  # which 0.1.0 did not say yet
        if expected["name"] != "stopped":
            assert _common(jobs[expected["id"]], expected) == expected
    datasets = {dataset["id"]: dataset for dataset in recovery.datasets()}
    for expected in told["datasets"]:
        assert _common(datasets[expected["id"]], expected) == expected
    assert [shard["name"] for shard in recovery.shards(told["shards"]["job"])["shards"]] == told["shards"]["names"]


def test_its_models_are_listed_with_their_calibrations_and_answer_with_its_numbers(old: tuple[Recovery, Any]) -> None:
    recovery, told = old
    for expected in told["models"]:
        samples, densities = expected.pop("samples"), expected.pop("densities")
        model = recovery.model(expected["id"])
        assert _common(model, expected) == expected
        assert model["checkpoints"][-1]["calibration"]["log_z"] is not None
        drawn = recovery.sample(expected["id"], len(samples["x"]), seed=samples["seed"]).x
        np.testing.assert_allclose(drawn, samples["x"], rtol=_TOLERANCE, atol=_TOLERANCE)
        scored = recovery.log_density(expected["id"], np.array(densities["x"])).log_density
        np.testing.assert_allclose(scored, densities["log_density"], rtol=1e-5, atol=_TOLERANCE)


def test_a_training_that_was_cancelled_resumes_from_its_checkpoint(old: tuple[Recovery, Any]) -> None:
    recovery, told = old
    job = next(job for job in told["jobs"] if job["name"] == "cancelled")
    recovery.resume(job["id"])
    wait_until(
        lambda: recovery.job(job["id"])["progress"]["step"] > job["last_checkpoint"], "its going on", timeout_s=90
    )
    recovery.cancel(job["id"])
    for _ in recovery.events(job["id"]):
        pass
    ended = recovery.job(job["id"])
    assert (ended["status"], ended["error"]) == ("cancelled", None)
    assert ended["last_checkpoint"] > job["last_checkpoint"]


def _common(body: Any, older: dict[str, Any]) -> dict[str, Any]:
    """The fields that the older version said, at every depth; later ones may say more."""
    match older:
        case dict():
            return {name: _common(body[name], value) for name, value in older.items()}
        case list() if len(older) == len(body):
            return [_common(ours, theirs) for ours, theirs in zip(body, older, strict=True)]
    return body

"""Sampling on the real stack over HTTP: levels as they are reached, clients that leave, samples in bulk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from model.presets import preset
from service.client import Recovery
from tests.servers import wait_until
from tests.stack import UpCommand
from tests.stored import store_untrained
from worker.connect import redis_client
from worker.queue.loads import fresh_loads
from worker.redis_keys import LOADS
from worker.settings import Settings
from worker.storage.artifacts import Artifacts

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def settings(command: UpCommand) -> Settings:
    """Those of the stack's workers."""
    return command.settings()


@pytest.fixture(scope="module")
def model_id(settings: Settings) -> str:
    """A model of the preset `digits` in the stack's storage."""
    return store_untrained(Artifacts.connect(settings), preset("digits"))


def _chains(settings: Settings) -> int:
    with redis_client(settings) as redis:
        entries: Any = redis.hgetall(LOADS)
    return sum(load.num_chains for load in fresh_loads(entries))


def test_every_level_is_streamed_and_the_result_is_the_one_of_the_seed(command: UpCommand, model_id: str) -> None:
    body = {"model": model_id, "num_images": 2, "seed": 4, "steps": 2}
    with httpx2.stream(
        "POST",
        f"{command.url}/sample",
        json=body,
        headers={"Accept": "text/event-stream"},
        timeout=120,
        trust_env=False,
    ) as answer:
        lines = list(answer.iter_lines())
    plain = httpx2.post(
        f"{command.url}/sample", json=body, headers={"Accept": "application/json"}, timeout=120, trust_env=False
    )
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    assert events == ["level"] * 15 + ["result"]
    assert [one["level"] for one in data[:-1]] == list(range(14, -1, -1))
    assert data[-1]["images"] == plain.json()["images"]


@pytest.mark.parametrize("accept", ["image/png", "text/event-stream"])
def test_a_client_that_leaves_frees_its_chains(
    command: UpCommand, settings: Settings, model_id: str, accept: str
) -> None:
    """A request of many minutes, abandoned once its chains run."""
    body = {"model": model_id, "num_images": 100, "steps": 1000}
    with httpx2.Client(base_url=command.url, timeout=httpx2.Timeout(60, read=3), trust_env=False) as http:
        with (
            pytest.raises(httpx2.ReadTimeout),
            http.stream("POST", "/sample", json=body, headers={"Accept": accept}) as answer,
        ):
            for _ in answer.iter_bytes():
                pass
        wait_until(lambda: _chains(settings) == 0, "freed chains")


def test_samples_in_bulk_are_those_of_the_seed(
    command: UpCommand, recovery: Recovery, model_id: str, tmp_path: Path
) -> None:
    line = ["sample", model_id, "-n", "30", "--seed", "9", "--bulk", "--out", str(tmp_path / "bulk")]
    run = subprocess.run(
        [sys.executable, "-m", "service.cli", *line, "--url", command.url],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    manifest = json.loads((tmp_path / "bulk" / "manifest.json").read_text())
    pixels = np.load(tmp_path / "bulk" / manifest["shards"][0]["name"])
    x = recovery.sample(model_id, 30, seed=9).x

    assert (pixels.dtype, pixels.shape, manifest["num_images"]) == (np.uint8, (30, 1, 8, 8), 30)
    assert np.abs(pixels - np.rint((x + 1) * 127.5)).max() <= 1

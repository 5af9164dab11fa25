"""A training on labelled data through the whole stack: its classes are listed, drawn, composed and told."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.event_kinds.pixels import to_bytes
from service.client import Model, Recovery, RefusedError
from tests.stack import TINY, UpCommand

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright 8×8 pictures, in a folder for each class."""
    folder = tmp_path_factory.mktemp("labelled") / "shades"
    random = np.random.default_rng(0)
    for name, low in (("bright", 160), ("dark", 0)):
        (folder / name).mkdir(parents=True)
        for index in range(40):
            Image.fromarray(random.integers(low, low + 95, (8, 8), np.uint8)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def model(command: UpCommand, upload: Path) -> Model:
    """A small conditional model of them."""
    config = {**TINY, "conditional": True, "classification_weight": 1.0}
    with Recovery(command.url) as client:
        dataset = client.upload_dataset(upload)
        job = client.train(preset="digits", dataset=dataset.id, config=config, steps=150, seed=1, name="shades")
        return job.wait(timeout_s=200).model()


def test_a_model_says_its_classes(recovery: Recovery, model: Model) -> None:
    found = recovery.model(model.id)
    assert (found.classes, found.event_shape) == (["bright", "dark"], [1, 8, 8])


def test_samples_are_of_the_labels_that_are_asked_for(recovery: Recovery, model: Model) -> None:
    balanced = recovery.sample(model.id, 8, seed=3)
    bright = recovery.sample(model.id, 8, seed=3, labels=["bright"])
    strongly = [recovery.sample(model.id, 8, seed=3, labels=[k], guidance=10.0, steps=20) for k in (0, 1)]

    assert (balanced.labels, balanced.guidance, balanced.kernel) == (["bright", "dark"], 0, "mala")
    np.testing.assert_allclose(balanced.x[::2], bright.x[::2], atol=1e-4)
    assert [one.labels for one in strongly] == [["bright"], ["dark"]]
    assert strongly[0].x.mean() > strongly[1].x.mean()
    with pytest.raises(RefusedError, match="'grey' is no class of this model; there are 'bright', 'dark'"):
        recovery.sample(model.id, labels=["grey"])


def test_labels_are_composed(recovery: Recovery, model: Model) -> None:
    product = {"all_of": [{"label": "bright"}, {"label": "dark", "weight": -0.5}]}
    several = recovery.sample(model.id, 4, seed=3, labels=[product, {"any_of": ["bright", "dark"]}, "dark", None])

    assert several.labels[0] == {"all_of": [{"label": "bright", "weight": 1.0}, {"label": "dark", "weight": -0.5}]}
    alone = recovery.sample(model.id, 1, seed=3, labels=[product])
    np.testing.assert_allclose(several.x[:1], alone.x, atol=1e-4)
    assert np.isfinite(several.x).all()


def test_a_bulk_job_draws_the_same_samples(recovery: Recovery, model: Model) -> None:
    job = recovery.sample_in_bulk(model.id, 6, seed=3, labels=["dark", "bright"], shard_images=4).wait(timeout_s=100)
    manifest = recovery.shards(job.id)
    shards = [np.load(io.BytesIO(recovery.shard(job.id, one["name"]))) for one in manifest["shards"]]
    expected = recovery.sample(model.id, 6, seed=3, labels=["dark", "bright"]).x

    assert (manifest["labels"], manifest["guidance"]) == (["dark", "bright"], 0)
    assert np.abs(np.concatenate(shards).astype(int) - to_bytes(expected)).max() <= 1


def test_pictures_are_classified(recovery: Recovery, model: Model, upload: Path) -> None:
    found = recovery.classify(model.id, [upload / "dark" / "0.png", upload / "bright" / "0.png"])

    assert found.labels == ["dark", "bright"]
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
    assert all(item.none_of_these is not None for item in found.items)
    noise = recovery.classify(model.id, np.random.default_rng(0).choice([-1.0, 1.0], (3, 1, 8, 8)))
    assert [item.none_of_these for item in noise.items] == [True] * 3


def test_the_command_line_draws_and_classifies(command: UpCommand, model: Model, upload: Path, tmp_path: Path) -> None:
    def run(*line: str) -> Any:
        ran = subprocess.run(
            [sys.executable, "-m", "service.cli", *line, "--url", command.url, "--json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    out = tmp_path / "dark.png"
    composed = '{"any_of": ["bright", "dark"]}'
    drawn = run(
        "sample", model.id, "-n", "4", "--label", "dark", "--label", composed, "--guidance", "1", "--out", str(out)
    )
    classified = run("classify", model.id, str(upload / "dark" / "1.png"))

    assert (drawn["labels"], drawn["guidance"]) == (["dark", {"any_of": ["bright", "dark"]}], 1.0)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert classified["items"][0]["label"] == "dark"

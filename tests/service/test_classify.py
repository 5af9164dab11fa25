"""POST /classify, with the test as the sampler at the end of the queue."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from service.work.images import encode_png
from tests.service.conftest import StandInSampler, store_model
from worker.queue.messages import input_key
from worker.queue.tasks import ClassifyReply, ClassifyRequest
from worker.storage.artifacts import Artifacts

CLASSES = ["ant", "bee", "3"]


@pytest.fixture
def labelled_id(s3: Artifacts, tmp_path: Path) -> str:
    """A conditional model of 8×8 images of three classes."""
    model_id = store_model(s3, tmp_path, "digits")
    s3.change_model(model_id, {"classes": CLASSES, "event_shape": [1, 8, 8]})
    return model_id


@pytest.fixture
def sampler(redis: Redis) -> Iterator[StandInSampler]:
    """A sampler that takes items for bees the brighter they are; dark ones are unlike held-out data."""

    def answer(request: ClassifyRequest) -> ClassifyReply:
        packed: Any = redis.get(input_key(request.request_id))
        x = np.load(io.BytesIO(packed))
        bright = (x.reshape(len(x), -1).mean(1) + 1) / 2
        return ClassifyReply(
            request_id=request.request_id,
            ok=True,
            model_id=request.model_id,
            step=request.step,
            probabilities=np.stack([(1 - bright) / 2, bright, (1 - bright) / 2], 1).astype(np.float32),
            energy=1 - bright.astype(np.float64),
            less_likely=bright.astype(np.float64) if request.noise_std == 0 else None,
        )

    with StandInSampler(redis, answer).serving() as found:
        yield found


def classify(client: TestClient, model: str, **fields: Any) -> dict[str, Any]:
    """The answer to items that must be classified."""
    answer = client.post("/classify", json={"model": model, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.usefixtures("sampler")
def test_every_item_has_its_label_its_probabilities_and_a_judgement(client: TestClient, labelled_id: str) -> None:
    x = np.stack([np.full((1, 8, 8), 0.8), np.full((1, 8, 8), -1.0)]).tolist()
    body = classify(client, labelled_id, x=x)

    assert (body["model"], body["classes"], body["noise_std"]) == (f"{labelled_id}@100", CLASSES, 0)
    bee, dark = body["items"]
    assert (bee["label"], bee["none_of_these"]) == ("bee", False)
    assert bee["probabilities"] == pytest.approx([0.05, 0.9, 0.05])
    assert (bee["probability"], bee["less_likely"]) == (pytest.approx(0.9), pytest.approx(0.9))
    assert (dark["label"], dark["less_likely"], dark["none_of_these"]) == ("ant", 0, True)
    assert "higher than that of 99 % of the model's held-out data" in body["explanation"]


@pytest.mark.usefixtures("sampler")
def test_with_noise_it_is_not_known_whether_an_item_is_none_of_these(client: TestClient, labelled_id: str) -> None:
    body = classify(client, labelled_id, x=np.zeros((1, 1, 8, 8)).tolist(), noise_std=0.3)

    assert (body["items"][0]["less_likely"], body["items"][0]["none_of_these"]) == (None, None)
    assert "not known" in body["explanation"]


def test_pictures_come_in_a_form(client: TestClient, labelled_id: str, sampler: StandInSampler) -> None:
    white = encode_png(np.ones((1, 8, 8), np.float32))
    files = [("files", ("white.png", white, "image/png"))]
    answer = client.post("/classify", data={"model": f"{labelled_id}@100", "noise_std": "0.5"}, files=files)

    assert answer.status_code == 200, answer.text
    assert answer.json()["items"][0]["probabilities"] == [0, 1, 0]
    assert [request.noise_std for request in sampler.requests] == [0.5]
    assert answer.headers["X-Model"] == f"{labelled_id}@100"


def test_a_model_without_classes_is_a_409_that_says_what_to_do(client: TestClient, model_id: str) -> None:
    answer = client.post("/classify", json={"model": model_id, "x": [[0.0]]})

    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    assert answer.json()["type"].endswith("not-conditional")
    assert "train one on labelled data" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({"x": [[1.0]]}, 422, "expected shape (N, 1, 8, 8)"),
        ({"x": np.zeros((1, 1, 8, 8)).tolist(), "noise_std": -1}, 422, "body.noise_std"),
        ({}, 422, "body.x"),
        ({"x": np.zeros((1, 1, 8, 8)).tolist(), "path": True}, 422, "body.path"),
        ({"x": np.zeros((1, 1, 8, 8)).tolist()}, 503, "no sampler"),
    ],
)
def test_requests_that_cannot_be_answered_say_what_to_do(
    client: TestClient, labelled_id: str, fields: dict[str, Any], status: int, told: str
) -> None:
    answer = client.post("/classify", json={"model": labelled_id, **fields})

    assert answer.status_code == status
    assert told in answer.json()["detail"]

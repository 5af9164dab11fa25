"""POST /sample in each form, with the test as the sampler on the other end of the queue."""

from __future__ import annotations

import base64
import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from redis import Redis

from service.settings import ServiceSettings
from tests.service.conftest import StandInSampler, store_model
from worker.ids import new_id
from worker.queue.loads import SamplerLoad, own_queue, packed
from worker.queue.messages import ReplyChannel, Timings, cancel_key
from worker.queue.tasks import SampleReply, SampleRequest
from worker.redis_keys import LOADS
from worker.storage.artifacts import Artifacts


def reply(request: SampleRequest) -> SampleReply:
    """Image i is flat, of a grey that grows with i."""
    greys = np.linspace(-1, 1, request.num_images, dtype=np.float32)
    x = np.broadcast_to(greys[:, None, None, None], (request.num_images, 1, 8, 8))
    return SampleReply(
        request_id=request.request_id,
        ok=True,
        model_id=request.model_id,
        step=100 if request.step is None else request.step,
        seed=request.seed,
        gradient_evaluations=200,
        precision=request.precision,
        timings=Timings(queue_s=0.001, load_s=0.002, compute_s=0.5),
        x=np.array(x),
        levels={level: np.array(x) * 0 for level in request.levels},
    )


def _vectors(request: SampleRequest) -> SampleReply:
    x = np.arange(2 * request.num_images, dtype=np.float32).reshape(-1, 2)
    return reply(request).model_copy(update={"x": x, "levels": {}})


@pytest.fixture
def sampler(redis: Redis) -> Iterator[StandInSampler]:
    """A sampler of flat images."""
    with StandInSampler(redis, reply).serving() as found:
        yield found


def draw(client: TestClient, model: str, accept: str = "*/*", **request: Any) -> httpx2.Response:
    """The answer to a request that must succeed."""
    answer = client.post("/sample", json={"model": model, **request}, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


def picture(content: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The pixels of a PNG."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


@pytest.mark.usefixtures("sampler")
def test_one_image_is_a_png_that_says_where_it_came_from(client: TestClient, model_id: str) -> None:
    answer = draw(client, model_id, seed=7, scale=2)

    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["X-Seed"] == "7"
    assert answer.headers["X-Model"] == f"{model_id}@100"
    assert answer.headers["X-NFE"] == "200"
    assert answer.headers["X-Precision"] == "float32"
    assert draw(client, model_id, precision="bfloat16").headers["X-Precision"] == "bfloat16"
    assert answer.headers["Server-Timing"].startswith("queue;dur=1.0, load;dur=2.0, compute;dur=500.0, encode;dur=")
    assert picture(answer.content).shape == (16, 16)


@pytest.mark.usefixtures("sampler")
def test_several_images_are_a_grid(client: TestClient, model_id: str) -> None:
    assert picture(draw(client, model_id, num_images=4).content).shape == (17, 17)


@pytest.mark.usefixtures("sampler")
def test_levels_are_columns_from_noise_to_sample(client: TestClient, model_id: str) -> None:
    pixels = picture(draw(client, model_id, num_images=2, levels=[3, 9]).content)

    assert pixels.shape == (17, 26)
    assert pixels[0, [0, 9, 18]].tolist() == [128, 128, 0]
    assert pixels[9, [0, 9, 18]].tolist() == [128, 128, 255]


@pytest.mark.usefixtures("sampler")
def test_a_zip_has_every_image_and_a_manifest(client: TestClient, model_id: str) -> None:
    answer = draw(client, f"{model_id}@100", "application/zip", num_images=3, levels=[5], seed=1)

    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        assert manifest["files"] == [f"{place}{n:03d}.png" for place in ("", "level-0005/") for n in range(3)]
        assert (manifest["model"], manifest["seed"]) == (f"{model_id}@100", 1)
        assert picture(archive.read("002.png"))[0, 0] == 255


@pytest.mark.usefixtures("sampler")
def test_json_has_base64_pngs(client: TestClient, model_id: str) -> None:
    body = draw(client, model_id, "application/json", num_images=2, levels=[4]).json()

    assert body["shape"] == [2, 1, 8, 8]
    assert [picture(base64.b64decode(image))[0, 0] for image in body["images"]] == [0, 255]
    assert body["levels"][0]["level"] == 4
    assert len(body["levels"][0]["images"]) == 2


@pytest.mark.usefixtures("sampler")
def test_npy_has_the_numbers_with_levels_in_front(client: TestClient, model_id: str) -> None:
    plain = np.load(io.BytesIO(draw(client, model_id, "application/x-npy", num_images=3).content))
    levels = np.load(io.BytesIO(draw(client, model_id, "application/x-npy", num_images=3, levels=[1, 2]).content))

    assert (plain.dtype, plain.shape) == (np.float32, (3, 1, 8, 8))
    assert levels.shape == (3, 3, 1, 8, 8)
    assert (levels[-1] == plain).all()


def test_vector_models_answer_in_numbers_and_refuse_pictures(
    client: TestClient, redis: Redis, s3: Artifacts, tmp_path: Path
) -> None:
    planar = store_model(s3, tmp_path, "density-2d")
    with StandInSampler(redis, _vectors).serving():
        plain = draw(client, planar, num_images=2)
        refused = client.post("/sample", json={"model": planar}, headers={"Accept": "image/png"})

    assert plain.json()["values"] == [[0, 1], [2, 3]]
    assert refused.status_code == 406
    assert "vectors" in refused.json()["detail"]
    assert "application/json, application/x-npy" in refused.json()["detail"]


def test_the_request_reaches_the_sampler_as_it_was_meant(
    client: TestClient, model_id: str, sampler: StandInSampler
) -> None:
    draw(client, f"{model_id}@100", num_images=2, steps=5, noise_scale=0.99, levels=[2, 7, 2])
    draw(client, model_id)

    first, second = sampler.requests
    assert (first.step, first.num_steps, first.noise_scale, first.levels) == (100, 5, 0.99, (7, 2))
    assert (second.step, second.num_steps, second.noise_scale, second.levels) == (100, None, None, ())
    assert first.seed != second.seed


@pytest.mark.parametrize(
    ("request_body", "status", "told"),
    [
        ({"num_images": 100_000}, 422, ["body.num_images", "256"]),
        ({"num_images": 0}, 422, ["body.num_images", "1"]),
        ({"scale": 33}, 422, ["body.scale", "32"]),
        ({"levels": [999]}, 422, ["level 999 does not exist", "pure noise"]),
        ({"levels": [-1]}, 422, ["body.levels.0"]),
        ({"noise_scale": "NaN"}, 422, ["body.noise_scale"]),
        ({"model": "nonsense"}, 404, ["GET /models"]),
        ({"model": new_id()}, 404, ["there is no model", "GET /models"]),
        ({"model": "../secrets"}, 404, ["GET /models"]),
        ({"model": "x@latest"}, 422, ["id@step"]),
    ],
)
def test_requests_that_cannot_be_served_say_what_to_do(
    client: TestClient, model_id: str, request_body: dict[str, Any], status: int, told: list[str]
) -> None:
    answer = client.post("/sample", json={"model": model_id, **request_body})

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    for words in told:
        assert words in answer.json()["detail"]


def test_a_step_without_checkpoint_names_those_there_are(client: TestClient, model_id: str) -> None:
    answer = client.post("/sample", json={"model": f"{model_id}@99"})

    assert answer.status_code == 404
    assert "there are 100" in answer.json()["detail"]


def test_forms_nobody_offers_are_refused_before_anything_is_drawn(client: TestClient, model_id: str) -> None:
    answer = client.post("/sample", json={"model": model_id}, headers={"Accept": "text/html"})

    assert answer.status_code == 406
    assert "image/png" in answer.json()["detail"]


def test_without_a_sampler_the_answer_is_503_at_once(client: TestClient, model_id: str) -> None:
    answer = client.post("/sample", json={"model": model_id})

    assert (answer.status_code, answer.json()["type"]) == (503, "urn:recovery:problem:no-sampler")
    assert answer.headers["Retry-After"] == "5"


def test_a_sampler_that_stays_silent_is_a_504(client: TestClient, model_id: str, redis: Redis) -> None:
    redis.set("worker:sample:silent", "", ex=60)

    answer = client.post("/sample", json={"model": model_id})

    assert (answer.status_code, answer.json()["type"]) == (504, "urn:recovery:problem:no-sampler")


def test_a_samplers_refusal_is_passed_on(client: TestClient, model_id: str, redis: Redis) -> None:
    refusal = "noise_scale is 0.5, but this model's kernel takes 1 only"
    with StandInSampler(redis, lambda request: SampleReply.failed(request, "bad_request", refusal)).serving():
        answer = client.post("/sample", json={"model": model_id, "noise_scale": 0.5})

    assert (answer.status_code, answer.json()["detail"]) == (422, refusal)


def _frames(answer: httpx2.Response) -> list[tuple[str, dict[str, Any]]]:
    """(event, data) of a stream."""
    found = []
    for block in answer.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields["event"], json.loads(fields["data"])))
    return found


def _level(request: SampleRequest, level: int) -> SampleReply:
    x = np.full((request.num_images, 1, 8, 8), level / 14 - 1, np.float32)
    return reply(request).model_copy(update={"x": None, "levels": {level: x}, "level_reached": level})


def test_a_stream_shows_every_level_and_then_the_samples(client: TestClient, model_id: str, redis: Redis) -> None:
    def answer(request: SampleRequest) -> SampleReply:
        for level in request.levels:
            ReplyChannel(request.request_id).push(redis, _level(request, level))
        return reply(request)

    with StandInSampler(redis, answer).serving() as sampler:
        answered = draw(client, model_id, "text/event-stream", num_images=2, seed=3)
        named = draw(client, model_id, "text/event-stream", levels=[2, 9])

    frames = _frames(answered)
    assert sampler.requests[0].stream
    assert answered.headers["content-type"].startswith("text/event-stream")
    assert (answered.headers["X-Seed"], answered.headers["X-Model"]) == ("3", f"{model_id}@100")
    assert [data.get("level") for _, data in frames] == [*range(14, -1, -1), None]
    assert [event for event, _ in frames] == ["level"] * 15 + ["result"]
    assert [picture(base64.b64decode(image))[0, 0] for image in frames[0][1]["images"]] == [128, 128]
    assert (frames[-1][1]["seed"], len(frames[-1][1]["images"])) == (3, 2)
    assert [data.get("level") for _, data in _frames(named)] == [9, 2, None]


def test_a_stream_that_is_refused_is_a_problem_of_its_own(client: TestClient, model_id: str, redis: Redis) -> None:
    def refuse(request: SampleRequest) -> SampleReply:
        return SampleReply.failed(request, "bad_request", "not with this kernel")

    with StandInSampler(redis, refuse).serving():
        answer = client.post("/sample", json={"model": model_id}, headers={"Accept": "text/event-stream"})

    assert (answer.status_code, answer.json()["detail"]) == (422, "not with this kernel")


def test_a_stream_that_breaks_off_ends_with_a_problem(client: TestClient, model_id: str, redis: Redis) -> None:
    def break_off(request: SampleRequest) -> SampleReply:
        ReplyChannel(request.request_id).push(redis, _level(request, 14))
        return SampleReply.failed(request, "stopped", "the sampler is shutting down; try again")

    with StandInSampler(redis, break_off).serving():
        frames = _frames(draw(client, model_id, "text/event-stream"))

    assert [event for event, _ in frames] == ["level", "problem"]
    assert (frames[1][1]["status"], frames[1][1]["detail"]) == (503, "the sampler is shutting down; try again")


def test_a_busy_sampler_is_a_429_that_says_when_to_come_back(client: TestClient, model_id: str, redis: Redis) -> None:
    def busy(request: SampleRequest) -> SampleReply:
        return SampleReply.failed(request, "busy", "the sampler is busy; try again in 7 s", retry_after_s=6.2)

    with StandInSampler(redis, busy).serving():
        answer = client.post("/sample", json={"model": model_id})

    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
    assert answer.json()["type"] == "urn:recovery:problem:busy"


def test_a_long_queue_is_a_429_by_what_the_samplers_say_of_themselves(
    client: TestClient, model_id: str, redis: Redis, service_settings: ServiceSettings
) -> None:
    redis.set("worker:sample:silent", "", ex=60)
    load = SamplerLoad(
        "silent",
        [],
        num_chains=64,
        num_waiting=900,
        backlog_s=33.3,
        num_evaluations=0,
        num_row_evaluations=0,
        told_at=time.time(),
    )
    redis.hset(LOADS, "silent", packed(load))
    redis.rpush("sample", *["x"] * service_settings.max_queued_requests)

    answer = client.post("/sample", json={"model": model_id})

    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "34")
    assert redis.llen("sample") == service_settings.max_queued_requests


def test_a_request_nobody_answered_in_time_is_withdrawn(client: TestClient, model_id: str, redis: Redis) -> None:
    redis.set("worker:sample:silent", "", ex=60)
    client.post("/sample", json={"model": model_id})

    message = json.loads(cast(bytes, redis.lpop("sample")))
    assert redis.exists(cancel_key(message["headers"]["id"]))


def test_requests_go_where_the_model_is_loaded(client: TestClient, model_id: str, redis: Redis) -> None:
    redis.set("worker:sample:warm", "", ex=60)
    for name, models in (("warm", [f"{model_id}@100"]), ("cold", [])):
        load = SamplerLoad(
            name,
            models,
            num_chains=0,
            num_waiting=0,
            backlog_s=0.5,
            num_evaluations=0,
            num_row_evaluations=0,
            told_at=time.time(),
        )
        redis.hset(LOADS, name, packed(load))

    client.post("/sample", json={"model": model_id})

    assert (redis.llen("sample"), redis.llen(own_queue("warm"))) == (0, 1)

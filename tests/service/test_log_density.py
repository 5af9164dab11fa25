"""POST /log-density and the density's picture, with the test as the sampler on the other end of the queue."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from redis import Redis

from model.event_kinds.pixels import to_bytes
from service.work.images import encode_png
from tests.service.conftest import StandInSampler, calibration, store_model
from worker.queue.messages import SamplerReply, Timings, input_key
from worker.queue.tasks import DensityMapReply, DensityReply, DensityRequest
from worker.storage.artifacts import Artifacts


def _answer(request: Any) -> SamplerReply:
    """The i-th item has log density i + 1/7; planar models are drawn as the bytes of a word."""
    shared = {"request_id": request.request_id, "ok": True, "model_id": request.model_id, "step": request.step}
    if not isinstance(request, DensityRequest):
        return DensityMapReply(**shared, png=b"picture")
    values = np.arange(3, dtype=np.float64) + np.float64(1 / 7)
    return DensityReply(
        **shared,
        seed=request.seed,
        gradient_evaluations=13 * request.num_paths,
        timings=Timings(queue_s=0.001, load_s=0.002, compute_s=0.5),
        calibration=calibration((1, 8, 8)).to_dict(),
        log_density=values,
        energy=-values,
        bits_per_dim=values / 3,
        path_log_density=values + 1 if request.num_paths else None,
        path_spread=np.array([0.5, 0.25, np.nan]) if request.num_paths else None,
    )


@pytest.fixture
def sampler(redis: Redis) -> Iterator[StandInSampler]:
    """A sampler that answers three items."""
    with StandInSampler(redis, _answer).serving() as found:
        yield found


@pytest.fixture
def digits(s3: Artifacts, model_id: str) -> str:
    """A calibrated model of 8×8 images."""
    s3.put_calibration(model_id, 100, calibration((1, 8, 8)).to_dict())
    return model_id


@pytest.fixture
def planar(s3: Artifacts, tmp_path: Path) -> str:
    """A calibrated model of points."""
    found = store_model(s3, tmp_path, "density-2d")
    s3.put_calibration(found, 100, calibration((2,)).to_dict())
    return found


def score(client: TestClient, model: str, **fields: Any) -> dict[str, Any]:
    """The answer to points that must be scored."""
    answer = client.post("/log-density", json={"model": model, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def npy(array: Any, **options: Any) -> bytes:
    """As a .npy file."""
    packed = io.BytesIO()
    np.save(packed, array, **options)
    return packed.getvalue()


def send(client: TestClient, model: str, *files: tuple[str, bytes], **fields: str) -> httpx2.Response:
    """The answer to files in a form."""
    form = [("files", file) for file in files]
    answer: httpx2.Response = client.post("/log-density", data={"model": model, **fields}, files=form)
    return answer


def test_numbers_are_scored_and_the_answer_says_what_it_is(
    client: TestClient, planar: str, sampler: StandInSampler, redis: Redis
) -> None:
    answer = client.post("/log-density", json={"model": planar, "x": [[0, 1.5], [2, 3], [4, 5]]})
    body = answer.json()

    assert sampler.arrays[0].tolist() == [[0, 1.5], [2, 3], [4, 5]]
    assert sampler.arrays[0].dtype == np.float32
    assert [item["log_density"] for item in body["items"]] == [i + 1 / 7 for i in range(3)]
    assert [item["energy"] for item in body["items"]] == [-i - 1 / 7 for i in range(3)]
    assert body["items"][0]["path_log_density"] is None
    assert (body["log_z"]["lower"], body["log_z"]["upper"], body["log_z"]["upper_start"]) == (-10.1, -9.9, "chain")
    assert body["log_z"]["estimate"] == pytest.approx(-10)
    assert body["std_error"] == body["log_z"]["std_error"] == pytest.approx(0.1)
    assert (body["level"], body["blur_std"], body["model"]) == (0, 0.06, f"{planar}@100")
    assert answer.headers["X-Model"] == f"{planar}@100"
    assert answer.headers["X-NFE"] == "0"
    assert answer.headers["Server-Timing"].startswith("queue;dur=1.0, load;dur=2.0, compute;dur=500.0, encode;dur=")
    assert "X-Seed" not in answer.headers
    assert redis.keys(input_key("*")) == []


def test_the_path_estimate_is_seeded_and_told_beside(client: TestClient, planar: str, sampler: StandInSampler) -> None:
    request = {"model": planar, "x": [[0, 1]] * 3, "path": True, "num_paths": 8}
    answer = client.post("/log-density", json={**request, "seed": 9})
    drawn = [client.post("/log-density", json=request).headers["X-Seed"] for _ in range(2)]
    body = answer.json()

    assert [item["path_log_density"] for item in body["items"]] == [i + 8 / 7 for i in range(3)]
    assert [item["path_spread"] for item in body["items"]] == [0.5, 0.25, None]
    assert (body["seed"], answer.headers["X-Seed"], body["num_paths"]) == (9, "9", 8)
    assert answer.headers["X-NFE"] == "104"
    assert [request.num_paths for request in sampler.requests] == [8, 8, 8]
    assert drawn[0] != drawn[1]


def test_pixels_are_read_as_sampling_writes_them(client: TestClient, digits: str, sampler: StandInSampler) -> None:
    images = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 1, 8, 8)
    jpeg = io.BytesIO()
    Image.fromarray(to_bytes(images[2, 0])).save(jpeg, "jpeg", quality=95)
    answer = send(
        client,
        digits,
        ("a.png", encode_png(images[0])),
        ("b.png", encode_png(np.repeat(images[1], 3, 0))),
        ("c.jpg", jpeg.getvalue()),
    )

    assert answer.status_code == 200, answer.text
    (sent,) = sampler.arrays
    np.testing.assert_array_equal(to_bytes(sent[:2]), to_bytes(images[:2]))
    np.testing.assert_allclose(sent[:2], to_bytes(images[:2]) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(sent[2], images[2], atol=0.1)
    assert [item["bits_per_dim"] for item in answer.json()["items"]] == [
        pytest.approx((i + 1 / 7) / 3) for i in range(3)
    ]


def test_one_npy_file_holds_all_items(client: TestClient, digits: str, sampler: StandInSampler) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (256, 1, 8, 8))
    answer = send(client, f"{digits}@100", ("x.npy", npy(x)), path="true", num_paths="2", seed="3")

    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(sampler.arrays[0], x.astype(np.float32))
    (request,) = sampler.requests
    assert (request.step, request.num_paths, request.seed) == (100, 2, 3)


def test_bytes_in_an_npy_are_pixels_of_an_image_and_numbers_of_a_vector(
    client: TestClient, digits: str, planar: str, sampler: StandInSampler
) -> None:
    send(client, digits, ("x.npy", npy(np.full((3, 1, 8, 8), 255, np.uint8))))
    send(client, planar, ("x.npy", npy(np.full((3, 2), 255, np.uint8))))

    assert [array.max() for array in sampler.arrays] == [1, 255]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"x": [[1, 2, 3]]}, "the shape is (1, 3); expected shape (N, 2)"),
        ({"x": [1, 2]}, "the shape is (2,); expected shape (N, 2)"),
        ({"x": []}, "expected shape (N, 2)"),
        ({"x": [[1, 2], [3]]}, "not nested lists of numbers of one length"),
        ({"x": [["1", "2"]]}, "not nested lists of numbers"),
        ({"x": [[1, None]]}, "not nested lists of numbers"),
        ({"x": [[True, False]]}, "not nested lists of numbers"),
        ({"x": [[1, 2], [3, 1e300]]}, "body.x.1: a value is not a finite float32"),
        ({"x": [[1, 10**400]]}, "body"),
        ({"x": [[0, 0]] * 1025}, "there are 1025 items; expected at most 1024"),
        ({"x": [[0, 0]] * 100, "path": True, "num_paths": 6}, "6 paths for 100 items are more than 512"),
        ({"x": [[0, 0]], "num_paths": 0}, "greater than or equal to 1"),
        ({"x": [[0, 0]], "path": "yes"}, "valid boolean"),
        ({"x": [[0, 0]], "surprise": 1}, "Extra inputs"),
        ({}, "body.x: Field required"),
    ],
)
def test_items_that_cannot_be_scored_are_refused_with_what_was_expected(
    client: TestClient, planar: str, fields: dict[str, Any], told: str
) -> None:
    answer = client.post("/log-density", content=json.dumps({"model": planar, **fields}))

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert told in answer.json()["detail"]


def test_numbers_json_does_not_know_are_refused(client: TestClient, planar: str) -> None:
    answer = client.post("/log-density", content=f'{{"model": "{planar}", "x": [[0, NaN]]}}')

    assert (answer.status_code, "not a finite float32" in answer.text) == (422, True)


_PNG = encode_png(np.zeros((1, 8, 8), np.float32))
_LARGE = encode_png(np.zeros((1, 9, 8), np.float32))
_RED = encode_png(np.stack([np.ones((8, 8)), *np.zeros((2, 8, 8))]).astype(np.float32))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            [("note.txt", b"this is no picture")],
            "body.files.note.txt: is no image that can be read; expected 8-bit PNG",
        ),
        ([("fine.png", _PNG), ("cut.png", _PNG[:45])], "body.files.cut.png: is no image that can be read"),
        ([("large.png", _LARGE)], "large.png: is 8×9 pixels; expected 8-bit PNG or JPEG in grey of 8×8 pixels"),
        ([("red.png", _RED)], "red.png: is in colour"),
        ([("x.npy", npy(np.array([{}]), allow_pickle=True))], "nothing is unpickled"),
        ([("x.npy", b"\x80\x04N.")], "nothing is unpickled"),
        (
            [("x.npy", npy(np.zeros(2)).replace(b"(2,), }" + b" " * 12, b"(9" + b"0" * 12 + b",), }"))],
            "nothing is unpickled",
        ),
        ([("x.npy", npy(np.zeros((2, 64))))], "the shape is (2, 64); expected shape (N, 1, 8, 8)"),
        ([("x.npy", npy(np.full((2, 1, 8, 8), np.inf)))], "body.files.0: a value is not a finite float32"),
        ([("x.npy", npy(np.array(["a"])))], "not a plain .npy array of numbers"),
        ([("x.npy", npy(np.zeros((1, 1, 8, 8)))), ("y.png", _PNG)], "x.npy: is no image"),
        ([], "there is no file"),
    ],
)
def test_files_that_cannot_be_scored_are_refused_with_what_was_expected(
    client: TestClient, digits: str, files: list[tuple[str, bytes]], told: str
) -> None:
    answer = client.post(
        "/log-density", data={"model": digits}, files=[("files", file) for file in files] or [("other", ("a", b"b"))]
    )

    assert answer.status_code == 422, answer.text
    assert told in answer.json()["detail"]


def test_pictures_of_points_and_unknown_bodies_are_refused(client: TestClient, planar: str) -> None:
    picture = send(client, planar, ("a.png", _PNG))
    text = client.post("/log-density", content=b"1,2", headers={"Content-Type": "text/csv"})

    assert (picture.status_code, "scores vectors that no image file holds" in picture.json()["detail"]) == (422, True)
    assert (text.status_code, "multipart/form-data" in text.json()["detail"]) == (415, True)


def test_an_uncalibrated_checkpoint_is_a_409_with_the_remedy(
    client: TestClient, model_id: str, s3: Artifacts, tmp_path: Path
) -> None:
    before = client.post("/log-density", json={"model": model_id, "x": [[0]]})
    s3.put_calibration(model_id, 100, calibration((1, 8, 8)).to_dict())
    s3.commit_checkpoint(model_id, 200, tmp_path / "checkpoint")
    after = client.post("/log-density", json={"model": model_id, "x": [[0]]})
    picture = client.get(f"/models/{model_id}/density.png")

    assert (before.status_code, before.json()["type"]) == (409, "urn:recovery:problem:not-calibrated")
    assert f'POST /jobs/calibrate with {{"model": "{model_id}@100"}}' in before.json()["detail"]
    assert after.status_code == picture.status_code == 409
    assert f"calibrated are {model_id}@100" in after.json()["detail"]


def test_data_may_be_larger_than_other_requests_and_not_larger_than_their_limit(
    client: TestClient, digits: str, sampler: StandInSampler
) -> None:
    x = np.zeros((1024, 1, 8, 8), np.float32)
    whole = send(client, digits, ("x.npy", npy(x)))
    more = send(client, digits, ("x.npy", npy(np.repeat(x, 3, 0))))
    job = client.post("/jobs/train", json={"preset": "digits", "name": "x" * 30_000})

    assert (whole.status_code, len(sampler.arrays[0])) == (200, 1024)
    assert (more.status_code, job.status_code) == (413, 413)


def test_without_a_sampler_the_answer_is_503_at_once(client: TestClient, planar: str) -> None:
    answer = client.post("/log-density", json={"model": planar, "x": [[0, 0]]})

    assert (answer.status_code, answer.json()["type"]) == (503, "urn:recovery:problem:no-sampler")


@pytest.mark.usefixtures("sampler")
def test_the_density_of_a_planar_model_is_a_picture_and_no_other(client: TestClient, planar: str, digits: str) -> None:
    picture = client.get(f"/models/{planar}/density.png")
    other = client.get(f"/models/{digits}/density.png")

    assert (picture.status_code, picture.content, picture.headers["content-type"]) == (200, b"picture", "image/png")
    assert picture.headers["X-Model"] == f"{planar}@100"
    assert (other.status_code, "shape (1, 8, 8)" in other.json()["detail"]) == (422, True)


def test_models_show_which_checkpoints_are_calibrated_with_the_numbers(client: TestClient, digits: str) -> None:
    (checkpoint,) = client.get(f"/models/{digits}").json()["checkpoints"]
    (listed,) = client.get("/models").json()["models"]

    assert checkpoint["calibration"]["log_z"]["estimate"] == pytest.approx(-10)
    assert (checkpoint["calibration"]["held_out_log_density"], checkpoint["calibration"]["num_held_out"]) == (61, 897)
    assert listed["checkpoints"] == [checkpoint]


def test_the_document_describes_both_bodies(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    contents = document["paths"]["/log-density"]["post"]["requestBody"]["content"]

    assert set(contents) == {"application/json", "multipart/form-data"}
    assert {"LogDensityRequestBody", "LogDensityBody", "LogZBody"} <= set(document["components"]["schemas"])

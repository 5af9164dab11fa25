"""How jobs are asked for: presets, a check beforehand, `Idempotency-Key` and `Prefer: wait=N`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from model.config import ChainConfig, from_dict, to_dict
from model.presets import PRESET_SUMMARIES, PRESETS
from service.app import create_app
from service.client import Recovery
from service.http.preference import MAX_WAIT_S
from service.settings import ServiceSettings
from tests.service.test_jobs import SMALL, start, take
from worker.jobs.record import JobStatus
from worker.jobs.records import RecordStore
from worker.redis_keys import TRAIN_QUEUE

KEY = {"Idempotency-Key": "client-7/first try"}


def post(client: TestClient, *, headers: dict[str, str], **changes: Any) -> Any:
    return client.post("/jobs/train", json={**SMALL, **changes}, headers=headers)


def test_the_same_request_with_the_same_key_gets_the_same_job(client: TestClient, redis: Redis) -> None:
    first, second = (post(client, headers=KEY, seed=None) for _ in range(2))

    assert (first.status_code, second.status_code) == (202, 202)
    assert second.json()["id"] == first.json()["id"]
    assert second.json()["seed"] == first.json()["seed"]
    assert second.headers["Location"] == first.headers["Location"]
    assert len(client.get("/jobs").json()["jobs"]) == redis.llen(TRAIN_QUEUE) == 1


def test_another_key_no_key_and_another_client_make_another_job(client: TestClient) -> None:
    given: list[dict[str, str]] = [KEY, {"Idempotency-Key": "other"}, {}, {}, KEY | {"Authorization": "Bearer x"}]

    assert len({post(client, headers=headers).json()["id"] for headers in given}) == len(given)


def test_a_key_that_came_with_another_request_is_refused(client: TestClient, model_id: str) -> None:
    post(client, headers=KEY)

    for answer in (
        post(client, headers=KEY, steps=45),
        client.post("/jobs/calibrate", json={"model": model_id}, headers=KEY),
    ):
        assert answer.status_code == 422
        assert answer.json()["type"].endswith("idempotency-key-reused")
        assert "new key" in answer.json()["detail"]


def test_a_request_under_way_is_not_started_again_until_it_is_given_up(client: TestClient, redis: Redis) -> None:
    job_id = post(client, headers=KEY).json()["id"]
    redis.delete(f"job:{job_id}")  # as it is between the binding of the key and the writing of the job
    redis.expire(redis.keys("idempotency:*")[0], 5)
    during = post(client, headers=KEY)

    assert (during.status_code, during.headers["Retry-After"]) == (409, "1")
    assert during.json()["type"].endswith("request-in-flight")
    redis.delete(*redis.keys("idempotency:*"))  # it expired
    assert post(client, headers=KEY).json()["id"] != job_id


def test_a_request_that_failed_may_be_sent_again(client: TestClient, service_settings: ServiceSettings) -> None:
    away = service_settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    with TestClient(create_app(away), raise_server_exceptions=False) as cut_off:
        refused = post(cut_off, headers=KEY)

    assert (refused.status_code, "S3 storage is away" in refused.json()["detail"]) == (503, True)
    assert post(client, headers=KEY).status_code == 202


def test_a_job_whose_request_died_before_its_answer_is_found_by_the_key(
    client: TestClient, store: RecordStore, redis: Redis
) -> None:
    job_id = post(client, headers=KEY).json()["id"]
    (name,) = redis.keys("idempotency:*")
    redis.expire(name, 5)  # as it is until the job is made

    assert post(client, headers=KEY).json()["id"] == job_id
    assert store.get(job_id).status is JobStatus.queued


def test_an_answer_waits_for_the_end_of_the_job_if_the_client_prefers_that(
    client: TestClient, store: RecordStore
) -> None:
    job_id = client.post("/jobs/train", json=SMALL).json()["id"]
    lease = take(store, job_id)
    timer = threading.Timer(0.5, store.succeed, [lease])
    timer.start()
    answer = client.get(f"/jobs/{job_id}", headers={"Prefer": "respond-async, wait=20"})
    timer.join()

    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["Preference-Applied"] == "wait=20"


def test_a_wait_ends_with_the_job_as_it_is(client: TestClient) -> None:
    began_at = time.monotonic()
    answer = post(client, headers={"Prefer": "wait=1"})

    assert 1 <= time.monotonic() - began_at < 8
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers["Preference-Applied"] == "wait=1"


def test_a_job_that_ends_while_its_maker_waits_is_answered_with_200(client: TestClient, store: RecordStore) -> None:
    def end_it() -> None:
        while not (waiting := store.waiting_ids(TRAIN_QUEUE)):
            time.sleep(0.05)
        store.fail(take(store, waiting[0]), "why")

    worker = threading.Thread(target=end_it)
    worker.start()
    answer = post(client, headers={"Prefer": "wait=20"})
    worker.join()

    assert (answer.status_code, answer.json()["error"]) == (200, "why")


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [("wait=999999", f"wait={MAX_WAIT_S}"), ("wait=-1", None), ("wait=soon", None), ("awaited=5", None), ("", None)],
)
def test_a_long_wait_is_cut_and_an_unreadable_one_ignored(
    client: TestClient, store: RecordStore, prefer: str, applied: str | None
) -> None:
    job_id = client.post("/jobs/train", json=SMALL).json()["id"]
    store.request_cancel(job_id)
    answer = client.get(f"/jobs/{job_id}", headers={"Prefer": prefer})

    assert (answer.status_code, answer.headers.get("Preference-Applied")) == (200, applied)


@pytest.fixture
def breaking(client: TestClient) -> Iterator[tuple[Recovery, list[int]]]:
    """A client whose connection breaks after the service has done the first thing it was asked for."""
    calls: list[int] = []

    def pass_on(request: httpx2.Request) -> httpx2.Response:
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        answer = client.request(request.method, request.url.path, content=request.content, headers=headers)
        calls.append(answer.status_code)
        if len(calls) == 1:
            raise httpx2.RemoteProtocolError("the connection broke", request=request)
        return httpx2.Response(answer.status_code, content=answer.content)

    with Recovery("http://test") as recovery:
        recovery._http = httpx2.Client(base_url="http://test", transport=httpx2.MockTransport(pass_on))
        yield recovery, calls


def test_the_client_asks_again_when_the_answer_got_lost_and_gets_the_one_job(
    breaking: tuple[Recovery, list[int]], store: RecordStore
) -> None:
    recovery, calls = breaking
    job = recovery.train(**SMALL)  # type: ignore[arg-type]

    assert calls == [202, 202]
    assert [record.id for record in store.list().records] == [job["id"]]


def test_presets_are_listed_with_what_they_would_train(client: TestClient) -> None:
    presets = client.get("/presets").json()["presets"]

    assert [one["name"] for one in presets] == list(PRESETS)
    for one in presets:
        assert one["config"] == json.loads(json.dumps(to_dict(PRESETS[one["name"]])))
        assert one["summary"] == PRESET_SUMMARIES[one["name"]]


def test_a_request_that_is_only_checked_starts_nothing(client: TestClient, redis: Redis) -> None:
    wanted = {"preset": "digits", "steps": 98, "seed": 3}
    checked = client.post("/jobs/train/check", json=wanted)
    refused = {"preset": "digits", "dataset": "two_moons"}
    told = [client.post(path, json=refused) for path in ("/jobs/train/check", "/jobs/train")]

    assert client.get("/jobs").json()["jobs"] == []
    assert redis.llen(TRAIN_QUEUE) == 0
    assert checked.json()["config"] == client.post("/jobs/train", json=wanted).json()["config"]
    assert told[0].status_code == told[1].status_code == 422
    assert told[0].json()["errors"] == told[1].json()["errors"]


def test_an_adjusted_kernel_adapts_its_steps_unless_the_request_says_otherwise(client: TestClient) -> None:
    def chain(**changes: Any) -> ChainConfig:
        found = start(client, preset="digits-t6", config={"chain": changes})["config"]["chain"]
        return from_dict(ChainConfig, found)

    assert chain(kernel="mala").adapts_to == 0.7
    assert chain(kernel="hmc", target_acceptance=0.6).adapts_to == 0.6
    assert chain(kernel="mala", target_acceptance=None).adapts_to is None
    assert chain().adapts_to is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"preset": "density-2d", "dataset": "rings", "conditional": True}, "nobody said of which classes"),
        ({"preset": "digits", "label_column": "kind"}, "built-in datasets know their labels; leave it out"),
        ({"preset": "digits", "dataset": "hf://a/b", "label_column": "kind"}, "the last part of the dataset's name"),
    ],
)
def test_labels_that_a_dataset_does_not_have_are_told_before_a_training_starts(
    client: TestClient, changes: dict[str, Any], told: str
) -> None:
    answer = client.post("/jobs/train", json=changes)

    assert answer.status_code == 422
    assert "body.dataset" in answer.json()["detail"]
    assert told in answer.json()["detail"]


def test_a_training_is_conditional_by_one_word(client: TestClient) -> None:
    body = {"preset": "digits", "conditional": True}

    assert client.post("/jobs/train/check", json=body).json()["config"]["conditional"] is True


def test_pictures_are_planned_from_what_is_known_of_them_and_the_trainer_gets_the_wish(
    client: TestClient, store: RecordStore
) -> None:
    wanted = {"preset": "images", "dataset": "mnist5k", "minutes": 20, "config": {"network": {"width": 24}}, "seed": 3}
    checked = client.post("/jobs/train/check", json=wanted).json()
    job = client.post("/jobs/train", json=wanted).json()

    assert checked["config"]["network"]["kind"] == "unet"
    assert checked["config"]["network"]["width"] == 24
    assert checked["config"]["conditional"]
    assert "5,000 grey pictures of 28×28 pixels, of 10 classes" in checked["plan"][0]
    assert job["config"] == checked["config"]
    wish = store.get(job["id"]).spec["plan"]
    assert wish["minutes"] == 20
    assert wish["changes"] == {"network": {"width": 24}, "seed": 3, "dataset": "mnist5k"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"preset": "digits", "minutes": 5}, "minutes are for preset 'images'"),
        ({"preset": "images", "minutes": 90, "steps": 50}, "minutes 90 and steps 50 both say when"),
        ({"preset": "images", "minutes": 90, "config": {"steps": 50}}, "minutes 90 and steps 50 both say when"),
        ({"preset": "images", "dataset": "two_moons"}, "two_moons holds vectors"),
        ({"preset": "images", "config": {"network": {"width": 1}}}, "expected a number from 4"),
    ],
)
def test_what_cannot_be_planned_is_refused(client: TestClient, changes: dict[str, Any], told: str) -> None:
    answer = client.post("/jobs/train", json=changes)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


def test_a_bulk_sampling_is_queued_with_the_seed_that_it_will_draw_with(
    client: TestClient, store: RecordStore, model_id: str
) -> None:
    given = client.post("/jobs/sample", json={"model": model_id, "num_images": 10, "seed": 4, "steps": 2}).json()
    drawn = client.post("/jobs/sample", json={"model": f"{model_id}@100", "num_images": 10}).json()

    assert (given["kind"], given["model_id"], given["model_step"], given["seed"]) == ("sample", model_id, 100, 4)
    assert drawn["seed"] == store.get(drawn["id"]).spec["seed"]
    assert (drawn["num_gpus"], drawn["config"], drawn["dataset"]) == (None, None, None)
    assert store.get(given["id"]).spec == {
        "device": "auto",
        "step": 100,
        "num_images": 10,
        "shard_images": 1000,
        "seed": 4,
        "num_steps": 2,
        "start": None,
        "noise_scale": None,
        "labels": [],
        "adjusted": None,
    }

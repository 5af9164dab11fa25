"""The jobs' routes over real stores; the test is the worker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from model.events import HealthEvent
from worker.ids import new_id
from worker.jobs.record import JobRecord, JobStatus, Lease
from worker.jobs.records import RecordStore
from worker.redis_keys import TRAIN_QUEUE

SMALL = {"preset": "digits", "steps": 44, "seed": 3}


def start(client: TestClient, **request: Any) -> dict[str, Any]:
    """A job that was accepted."""
    answer = client.post("/jobs/train", json={**SMALL, **request})
    assert answer.status_code == 202, answer.text
    body: dict[str, Any] = answer.json()
    return body


def take(store: RecordStore, job_id: str) -> Lease:
    """Run the job as a worker would."""
    lease = store.acquire_lease(job_id, "tests")
    assert lease is not None
    return lease


def refused(client: TestClient, request: dict[str, Any]) -> dict[str, Any]:
    """The problem a training request is answered with."""
    answer = client.post("/jobs/train", json=request)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    return body


def test_an_accepted_job_is_stored_queued_and_says_where_it_is(
    client: TestClient, store: RecordStore, redis: Redis
) -> None:
    answer = client.post("/jobs/train", json={**SMALL, "name": "first", "device": "cpu"})

    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/jobs/{body['id']}"
    assert (body["status"], body["name"], body["seed"], body["device"]) == ("queued", "first", 3, "cpu")
    assert body["progress"]["queue_position"] == 1
    record: JobRecord = store.get(body["id"])
    assert record.spec["config"]["steps"] == 44
    assert store.artifacts.get_json(f"jobs/{body['id']}/job.json")["id"] == body["id"]
    assert redis.llen(TRAIN_QUEUE) == 1


def test_an_absent_seed_is_drawn_and_told(client: TestClient) -> None:
    first, second = (start(client, seed=None)["seed"] for _ in range(2))

    assert first != second


def test_steps_keep_the_share_of_the_score_matching_start(client: TestClient) -> None:
    whole = start(client, steps=None)["config"]
    half = start(client, steps=whole["steps"] // 2)["config"]

    assert half["score_matching"]["steps"] == whole["score_matching"]["steps"] // 2


def test_a_configuration_is_laid_over_the_preset(client: TestClient) -> None:
    config = start(client, config={"network": {"width": 8}, "log_every": 7}, dataset="digits")["config"]

    assert config["network"]["width"] == 8
    assert config["network"]["num_blocks"] == 1
    assert config["log_every"] == 7


def test_a_configuration_alone_is_enough(client: TestClient) -> None:
    body = {"config": {"steps": 10, "network": {"width": 8, "num_blocks": 1}}}
    answer = client.post("/jobs/train", json=body)

    assert answer.status_code == 202
    assert answer.json()["config"]["batch_size"] == 256


def test_the_number_of_gpus_is_the_jobs_and_auto_a_batch_size(client: TestClient) -> None:
    job = start(client, num_gpus=2, num_nodes=3, device="cpu", batch_size="auto", config={"microbatch_size": 8})

    assert (job["num_gpus"], job["num_nodes"], job["device"]) == (2, 3, "cpu")
    assert (job["config"]["batch_size"], job["config"]["microbatch_size"]) == ("auto", 8)
    assert "num_gpus" not in job["config"]
    assert start(client)["num_gpus"] == 1


def test_every_wrong_field_of_a_configuration_is_named_where_it_is(client: TestClient) -> None:
    config = {"chain": {"num_steps": -1, "kernel": "nuts"}, "steps": "many", "depth": 3}
    problem = refused(client, {"preset": "digits", "config": config})
    told = {".".join(one["location"]): one["message"] for one in problem["errors"]}

    assert told.keys() == {f"body.config.{name}" for name in ("chain.num_steps", "chain.kernel", "steps", "depth")}
    assert told["body.config.chain.num_steps"] == "chain.num_steps is -1; expected a number from 0 to 10000"
    assert told["body.config.chain.kernel"] == "chain.kernel is 'nuts'; expected one of langevin, mala, hmc"


def test_fields_that_do_not_fit_each_other_are_named_where_they_are(client: TestClient) -> None:
    within = refused(client, {"preset": "digits-t6", "config": {"chain": {"target_acceptance": 0.7}}})
    alone = refused(client, {"config": {"score_matching": {"steps": 50}, "steps": 40}})

    assert [one["location"] for one in within["errors"]] == [["body", "config", "chain", "target_acceptance"]]
    assert [one["location"] for one in alone["errors"]] == [["body", "config", "score_matching", "steps"]]


@pytest.mark.parametrize(
    ("request_body", "told"),
    [
        ({}, ["give `preset`", "digits"]),
        ({"preset": "dogits"}, ["preset is 'dogits'", "digits", "cifar10-t6"]),
        ({"preset": "digits", "steps": 0}, ["body.steps", "greater than or equal to 1"]),
        ({"preset": "digits", "steps": "many"}, ["body.steps", "valid integer"]),
        ({"preset": "digits", "steps": 1.5}, ["body.steps"]),
        ({"preset": "digits", "seed": -1}, ["body.seed"]),
        ({"preset": "digits", "num_gpus": 0}, ["body.num_gpus", "greater than or equal to 1"]),
        ({"preset": "digits", "num_nodes": 65}, ["body.num_nodes", "less than or equal to 64"]),
        ({"preset": "digits", "batch_size": "large"}, ["body.batch_size", "'auto'"]),
        ({"preset": "digits", "config": {"batch_size": "large"}}, ["body.config.batch_size", "'auto'"]),
        ({"preset": "digits", "device": "tpu"}, ["body.device", "'auto'", "'cuda'"]),
        ({"preset": "digits", "learning_rate": 1}, ["body.learning_rate", "Extra inputs"]),
        ({"preset": "digits", "dataset": "kittens"}, ["'kittens'", "digits", "two_moons"]),
        ({"preset": "digits", "dataset": "../../etc/passwd"}, ["'../../etc/passwd'", "digits"]),
        ({"preset": "digits", "dataset": "two_moons"}, ["vectors", "density-2d"]),
        ({"preset": "digits", "config": {"network": {"width": 1}}}, ["network", "width", "expected"]),
        ({"preset": "digits", "config": {"network": {"width": "wide"}}}, ["body.config.network.width"]),
        ({"preset": "digits", "config": {"network": {"depth": 3}}}, ["network.depth", "num_blocks"]),
        ({"preset": "digits", "config": {"network": None}}, ["body.config.network"]),
        ({"preset": "digits", "name": ""}, ["body.name"]),
    ],
)
def test_a_request_that_cannot_be_trained_says_what_to_do(
    client: TestClient, request_body: dict[str, Any], told: list[str]
) -> None:
    problem = refused(client, request_body)

    assert problem["errors"]
    for words in told:
        assert words in problem["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"preset": NaN}', b"null"])
def test_a_body_that_is_no_json_object_is_a_problem(client: TestClient, body: bytes) -> None:
    answer = client.post("/jobs/train", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_jobs_are_listed_newest_first_page_by_page(client: TestClient, store: RecordStore) -> None:
    made = [start(client)["id"] for _ in range(3)]
    take(store, made[0])

    first = client.get("/jobs", params={"limit": 2}).json()
    second = client.get("/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    running = client.get("/jobs", params={"status": "running"}).json()

    assert [job["id"] for job in first["jobs"]] == made[:0:-1]
    assert [job["id"] for job in second["jobs"]] == made[:1]
    assert second["next_cursor"] is None
    assert [job["id"] for job in running["jobs"]] == made[:1]


def test_a_job_nobody_made_is_a_404_that_says_how_to_list_them(client: TestClient) -> None:
    for path in (f"/jobs/{new_id()}", "/jobs/nonsense", f"/jobs/{new_id()}/events"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "GET /jobs" in answer.json()["detail"]


def finished_job(client: TestClient, store: RecordStore) -> str:
    """A job that ran two steps and succeeded."""
    job_id: str = start(client)["id"]
    lease = take(store, job_id)
    for step in (1, 2):
        store.append_event(job_id, "step", {"step": step, "loss": 0.5}, lease.token)
    store.succeed(lease)
    return job_id


def test_events_come_as_server_sent_events_until_the_job_ends(client: TestClient, store: RecordStore) -> None:
    job_id = finished_job(client, store)

    answer = client.get(f"/jobs/{job_id}/events")

    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block.splitlines() for block in answer.text.strip().split("\n\n")]
    assert [block[0] for block in blocks] == [
        "event: status",
        "event: status",
        "event: step",
        "event: step",
        "event: status",
    ]
    for _, data, event_id in blocks:
        assert json.loads(data.removeprefix("data: "))["id"] == event_id.removeprefix("id: ")


def test_a_stream_goes_on_after_the_last_event_id(client: TestClient, store: RecordStore) -> None:
    job_id = finished_job(client, store)
    lines = {"Accept": "application/jsonl"}
    events = [json.loads(line) for line in client.get(f"/jobs/{job_id}/events", headers=lines).text.splitlines()]

    rest = client.get(f"/jobs/{job_id}/events", headers={**lines, "Last-Event-ID": events[2]["id"]}).text

    assert [event["data"].get("step") for event in events] == [None, None, 1, 2, None]
    assert [json.loads(line) for line in rest.splitlines()] == events[3:]


def test_a_finished_jobs_events_outlive_redis(client: TestClient, store: RecordStore, redis: Redis) -> None:
    job_id = finished_job(client, store)
    before = client.get(f"/jobs/{job_id}/events", headers={"Accept": "application/jsonl"}).text
    redis.delete(f"events:{job_id}")

    after = client.get(f"/jobs/{job_id}/events", headers={"Accept": "application/jsonl"}).text

    assert [json.loads(line)["data"] for line in after.splitlines()] == [
        json.loads(line)["data"] for line in before.splitlines()
    ]


def test_events_are_refused_in_other_forms_and_after_ids_that_are_none(client: TestClient, store: RecordStore) -> None:
    job_id = finished_job(client, store)

    other = client.get(f"/jobs/{job_id}/events", headers={"Accept": "text/html"})
    nonsense = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "yesterday"})

    assert (other.status_code, nonsense.status_code) == (406, 422)
    assert "text/event-stream, application/jsonl" in other.json()["detail"]


def test_a_waiting_job_is_cancelled_at_once_and_a_second_time_nothing_happens(client: TestClient) -> None:
    job_id = start(client)["id"]

    first, second = client.post(f"/jobs/{job_id}/cancel"), client.post(f"/jobs/{job_id}/cancel")

    assert (first.status_code, first.json()["status"]) == (202, "cancelled")
    assert (second.status_code, second.json()["status"]) == (200, "cancelled")


def test_a_running_job_is_asked_to_stop(client: TestClient, store: RecordStore) -> None:
    job_id = start(client)["id"]
    lease = take(store, job_id)

    answer = client.post(f"/jobs/{job_id}/cancel")

    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert answer.json()["cancel_requested"]
    assert store.check(lease)


def test_a_failed_job_is_resumed_with_more_steps(client: TestClient, store: RecordStore, redis: Redis) -> None:
    job = start(client)
    job_id = job["id"]
    store.artifacts.put_model(job["model_id"], {"job_id": job_id})  # as a trainer does before its first checkpoint
    lease = take(store, job_id)
    store.report_checkpoint(lease, 40)
    store.fail(lease, "out of memory")
    redis.delete(TRAIN_QUEUE)

    answer = client.post(f"/jobs/{job_id}/resume", json={"steps": 88})

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.json()["config"]["steps"] == 88
    assert answer.json()["config"]["score_matching"]["steps"] == 40
    assert redis.llen(TRAIN_QUEUE) == 1


def test_a_job_cannot_be_resumed_backwards_or_while_it_waits(client: TestClient, store: RecordStore) -> None:
    job_id = start(client)["id"]
    waiting = client.post(f"/jobs/{job_id}/resume")
    lease = take(store, job_id)
    store.report_checkpoint(lease, 40)
    store.cancel(lease)

    backwards = client.post(f"/jobs/{job_id}/resume", json={"steps": 40})

    assert waiting.status_code == 409
    assert "queued" in waiting.json()["detail"]
    assert backwards.status_code == 422
    assert "40 steps are done" in backwards.json()["detail"]
    assert store.get(job_id).status is JobStatus.cancelled


def test_a_calibration_is_queued_for_the_newest_checkpoint(
    client: TestClient, store: RecordStore, model_id: str
) -> None:
    answer = client.post("/jobs/calibrate", json={"model": model_id, "seed": 4, "num_chains": 64, "name": "log Z"})

    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/jobs/{body['id']}"
    assert (body["kind"], body["status"], body["name"]) == ("calibrate", "queued", "log Z")
    assert (body["model_id"], body["model_step"], body["seed"]) == (model_id, 100, 4)
    spec = store.get(body["id"]).spec
    chains = {"num_chains": 64, "max_chains": None, "max_bridges": 32, "num_leapfrog": 5}
    assert spec["config"] == {"seed": 4, "tolerance": None, **chains}
    assert client.get("/jobs", params={"kind": "calibrate"}).json()["jobs"][0]["id"] == body["id"]


def test_a_job_says_how_healthy_its_training_is(client: TestClient, store: RecordStore) -> None:
    job_id = start(client)["id"]
    lease = take(store, job_id)
    assert client.get(f"/jobs/{job_id}").json()["health"] is None

    store.report_health(lease, HealthEvent(step=100, level="amber", reason="0.3", remedy="shorter"))

    (listed,) = client.get("/jobs").json()["jobs"]
    assert listed["health"] == {"step": 100, "level": "amber", "reason": "0.3", "remedy": "shorter"}


def test_a_job_of_a_later_version_is_shown_and_can_be_cancelled(client: TestClient, store: RecordStore) -> None:
    job_id = store.create("distill", {"teacher": "x", "seed": 3}, name="from tomorrow").id

    (listed,) = client.get("/jobs").json()["jobs"]

    assert (listed["kind"], listed["name"], listed["seed"]) == ("distill", "from tomorrow", 3)
    assert listed["progress"]["queue_position"] is None
    assert client.get("/jobs", params={"kind": "distill"}).status_code == 422
    assert client.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert client.get(f"/jobs/{job_id}/shards").status_code == 404


def test_a_calibration_that_cannot_be_says_why(client: TestClient, model_id: str, store: RecordStore) -> None:
    fresh = new_id()
    store.artifacts.put_model(fresh, {"name": "no checkpoint yet"})

    def told(**request: Any) -> tuple[int, str]:
        answer = client.post("/jobs/calibrate", json=request)
        return answer.status_code, answer.json()["detail"]

    assert told(model=new_id())[0] == told(model="nonsense")[0] == 404
    assert told(model=f"{model_id}@99") == (404, f"model {model_id} has no checkpoint of step 99; there are 100")
    assert told(model=fresh)[0] == 409
    assert told(model=model_id, num_chains=1)[0] == told(model=model_id, tolerance=0)[0] == 422
    assert told(model=model_id, max_chains=100) == (422, "body: max_chains is 100; expected a number from 512 to 1e+06")


def test_a_calibration_goes_on_without_more_steps(client: TestClient, model_id: str) -> None:
    job_id = client.post("/jobs/calibrate", json={"model": model_id}).json()["id"]
    client.post(f"/jobs/{job_id}/cancel")

    refused_steps = client.post(f"/jobs/{job_id}/resume", json={"steps": 10})
    resumed = client.post(f"/jobs/{job_id}/resume")

    assert (refused_steps.status_code, "is no training" in refused_steps.json()["detail"]) == (422, True)
    assert resumed.status_code == 202


@pytest.mark.parametrize("call", ["get", "events", "cancel", "resume"])
def test_a_job_is_known_also_right_after_redis_was_wiped(
    client: TestClient, store: RecordStore, redis: Redis, call: str
) -> None:
    job = start(client)
    store.fail(take(store, job["id"]), "why")
    redis.flushall()
    path = f"/jobs/{job['id']}"
    if call == "get":
        assert client.get(path).json()["error"] == "why"
    elif call == "events":
        told = [
            json.loads(line)
            for line in client.get(f"{path}/events", headers={"Accept": "application/jsonl"}).text.splitlines()
            if line
        ]
        assert [event["data"]["status"] for event in told] == ["queued", "running", "failed"]
    else:
        assert client.post(f"{path}/{call}").status_code == {"cancel": 200, "resume": 202}[call]

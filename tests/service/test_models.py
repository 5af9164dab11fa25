"""The models' routes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from fastapi.testclient import TestClient

from worker.ids import new_id
from worker.storage.artifacts import Artifacts


def test_a_model_shows_its_data_configuration_and_checkpoints(client: TestClient, model_id: str) -> None:
    body = client.get(f"/models/{model_id}").json()

    assert (body["id"], body["dataset"], body["config"]["dataset"]) == (model_id, "digits", "digits")
    assert [checkpoint["step"] for checkpoint in body["checkpoints"]] == [100]


def test_models_are_listed(client: TestClient, model_id: str) -> None:
    assert model_id in [model["id"] for model in client.get("/models").json()["models"]]


def test_the_sample_grids_of_its_training_are_served(client: TestClient, model_id: str, s3: Artifacts) -> None:
    before = client.get(f"/models/{model_id}/samples.png")
    job_id = s3.get_model(model_id)["job_id"]
    s3.put_sample_grid(job_id, 9, b"older")
    s3.put_sample_grid(job_id, 10, b"newest")

    after = client.get(f"/models/{model_id}/samples.png")
    one_before = client.get(f"/models/{model_id}/samples.png", params={"step": 9})
    missing = client.get(f"/models/{model_id}/samples.png", params={"step": 8})

    assert before.status_code == 404
    assert "POST /sample" in before.json()["detail"]
    assert (after.headers["content-type"], after.content) == ("image/png", b"newest")
    assert one_before.content == b"older"
    assert (missing.status_code, "of step 8" in missing.json()["detail"]) == (404, True)


def test_a_model_nobody_trained_is_a_404_that_says_how_to_list_them(client: TestClient) -> None:
    for path in (f"/models/{new_id()}", "/models/nonsense", f"/models/{new_id()}/samples.png", "/models/..%2Fjobs"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        if "%2F" not in path:
            assert "GET /models" in answer.json()["detail"]


def test_a_model_is_named_and_tagged(client: TestClient, model_id: str, s3: Artifacts) -> None:
    before = s3.get_model(model_id)
    named = client.patch(f"/models/{model_id}", json={"name": "wide"}).json()
    tagged = client.patch(f"/models/{model_id}", json={"tags": ["paper", "seed 0", "paper"]}).json()

    assert (named["name"], named["tags"]) == ("wide", [])
    assert (tagged["name"], tagged["tags"]) == ("wide", ["paper", "seed 0"])
    assert client.get("/models").json()["models"][0]["tags"] == ["paper", "seed 0"]
    assert client.patch(f"/models/{model_id}", json={"name": None}).json()["name"] is None
    assert {**before, "name": None, "tags": ["paper", "seed 0"]} == s3.get_model(model_id)
    for wrong in ({"tags": [""]}, {"tags": ["x" * 41]}, {"tags": ["x"] * 21}, {"name": ""}, {"dataset": "rings"}):
        assert client.patch(f"/models/{model_id}", json=wrong).status_code == 422
    assert client.patch(f"/models/{new_id()}", json={"name": "nobody"}).status_code == 404


def test_of_two_changes_at_once_none_is_lost(model_id: str, s3: Artifacts) -> None:
    def change(index: int) -> None:
        s3.change_model(model_id, {f"field-{index}": index})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(8)))
    assert {f"field-{index}" for index in range(8)} <= set(s3.get_model(model_id))


def test_a_deleted_model_is_a_404_for_everybody(client: TestClient, model_id: str, s3: Artifacts) -> None:
    assert client.delete(f"/models/{model_id}").status_code == 204
    answers = [
        client.get(f"/models/{model_id}"),
        client.delete(f"/models/{model_id}"),
        client.patch(f"/models/{model_id}", json={"name": "back"}),
        client.post("/sample", json={"model": f"{model_id}@100"}),
        client.post("/log-density", json={"model": model_id, "x": [[0.0, 0.0]]}),
        client.post("/jobs/calibrate", json={"model": model_id}),
        client.post("/jobs/sample", json={"model": model_id, "num_images": 1}),
    ]
    assert [answer.status_code for answer in answers] == [404] * len(answers)
    assert [key for key, _, _ in s3.list_keys(f"models/{model_id}")] == []


def test_a_model_in_use_is_not_deleted_and_the_job_is_named(client: TestClient, model_id: str) -> None:
    job_id = client.post("/jobs/calibrate", json={"model": model_id}).json()["id"]
    refused = client.delete(f"/models/{model_id}")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:recovery:problem:model-in-use")
    assert job_id in refused.json()["detail"]
    assert client.get(f"/models/{model_id}").status_code == 200

    client.post(f"/jobs/{job_id}/cancel")
    assert client.delete(f"/models/{model_id}").status_code == 204
    resumed = client.post(f"/jobs/{job_id}/resume")
    assert (resumed.status_code, resumed.json()["type"]) == (409, "urn:recovery:problem:model-deleted")


def test_a_job_is_deleted_once_it_has_ended(client: TestClient) -> None:
    key = {"Idempotency-Key": "deleted"}
    body = {"preset": "digits", "seed": 0}
    job_id = client.post("/jobs/train", json=body, headers=key).json()["id"]
    refused = client.delete(f"/jobs/{job_id}")
    assert (refused.status_code, "cancel it first" in refused.json()["detail"]) == (409, True)

    client.post(f"/jobs/{job_id}/cancel")
    assert client.delete(f"/jobs/{job_id}").status_code == 204
    for answer in (
        client.get(f"/jobs/{job_id}"),
        client.get(f"/jobs/{job_id}/events"),
        client.post(f"/jobs/{job_id}/cancel"),
        client.post(f"/jobs/{job_id}/resume"),
        client.delete(f"/jobs/{job_id}"),
    ):
        assert answer.status_code == 404
    assert client.get("/jobs").json()["jobs"] == []
    again = client.post("/jobs/train", json=body, headers=key)
    assert (again.status_code, again.json()["type"]) == (409, "urn:recovery:problem:job-deleted")

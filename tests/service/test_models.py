"""The models' routes."""

from __future__ import annotations

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

"""Every error of every path is one problem+json body; every answer carries the request's id."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import ServiceSettings
from tests.servers import free_ports
from worker.ids import new_id


def test_an_unknown_path_is_a_problem_that_points_to_the_documentation(client: TestClient) -> None:
    answer = client.get("/nowhere")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:recovery:problem:unknown-route",
        "title": "Unknown route",
        "status": 404,
        "detail": "no route /nowhere; /docs lists all calls",
        "instance": "/nowhere",
    }


def test_a_wrong_method_is_a_problem_with_the_right_ones(client: TestClient) -> None:
    answer = client.delete("/jobs")

    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize("path", ["/jobs/train", "/sample", "/healthz", "/nowhere"])
def test_a_body_too_large_is_refused_by_its_announced_length(client: TestClient, path: str) -> None:
    answer = client.post(path, content=b" " * 20_001, headers={"Content-Type": "application/json"})

    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert "20000 bytes" in answer.json()["detail"]


def test_a_body_too_large_is_refused_without_announced_length(client: TestClient) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    answer = client.post("/jobs/train", content=pieces(), headers={"Content-Type": "application/json"})

    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_mistake_of_the_server_gives_nothing_away(service_settings: ServiceSettings) -> None:
    app = create_app(service_settings)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("password=hunter2")

    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/broken")

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in answer.text
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/jobs"])
def test_a_request_keeps_the_id_it_came_with(client: TestClient, path: str) -> None:
    assert client.get(path, headers={"X-Request-ID": "abc-123"}).headers["X-Request-ID"] == "abc-123"


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", 'quote"'])
def test_an_id_that_would_spoil_a_log_line_is_replaced(client: TestClient, given: str) -> None:
    found = client.get("/healthz", headers={"X-Request-ID": given}).headers["X-Request-ID"]

    assert found != given
    assert len(found) == 26


def test_redis_away_is_a_503_that_names_it_and_not_its_password(service_settings: ServiceSettings) -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_ports(1)[0]}/0"
    with TestClient(create_app(service_settings.model_copy(update={"redis_url": url}))) as client:
        for answer in (client.get("/jobs"), client.get(f"/jobs/{new_id()}/events")):
            assert answer.status_code == 503
            assert "Redis" in answer.json()["detail"]
            assert answer.headers["Retry-After"] == "5"
            assert "hunter2" not in answer.text


def test_storage_away_is_a_503_that_names_it(service_settings: ServiceSettings) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with TestClient(create_app(service_settings.model_copy(update={"s3_endpoint_url": url}))) as client:
        for answer in (client.get("/models"), client.post("/jobs/train", json={"preset": "digits"})):
            assert answer.status_code == 503
            assert "storage" in answer.json()["detail"]


def test_a_method_that_is_not_offered_is_told_all_that_are(client: TestClient) -> None:
    """Routes of one path stand apart in the router, which by itself names those of the first alone."""
    answer = client.put("/datasets")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"
    assert client.patch("/datasets/01JD3Z6M3Q9A0B1C2D3E4F5G6H").headers["allow"] == "DELETE, GET"

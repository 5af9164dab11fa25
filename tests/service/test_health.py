"""Liveness, readiness, metrics."""

from __future__ import annotations

from fastapi.testclient import TestClient
from redis import Redis

from service.app import create_app
from service.settings import ServiceSettings
from tests.servers import free_ports
from worker.presence import WorkerReport


def test_the_process_is_alive_without_asking_anybody(service_settings: ServiceSettings) -> None:
    away = service_settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_ports(1)[0]}/0"})
    with TestClient(create_app(away)) as client:
        assert client.get("/healthz").json() == {"status": "alive"}


def test_readiness_names_what_is_missing(client: TestClient, redis: Redis) -> None:
    without = client.get("/readyz")
    for kind in ("train", "sample"):
        redis.set(f"worker:{kind}:tests", "", ex=60)
    with_workers = client.get("/readyz")

    assert without.status_code == 503
    assert without.headers["content-type"] == "application/problem+json"
    assert {check["name"]: check["ok"] for check in without.json()["checks"]} == {
        "redis": True,
        "s3": True,
        "trainer": False,
        "sampler": False,
    }
    assert "trainer: no worker of queue 'train'" in without.json()["detail"]
    assert with_workers.status_code == 200
    assert all(check["ok"] for check in with_workers.json()["checks"])


def test_metrics_count_requests_by_template_and_jobs_by_state(client: TestClient) -> None:
    client.post("/jobs/train", json={"preset": "digits"})
    client.get("/jobs/nonsense")
    client.get("/somewhere/else")

    text = client.get("/metrics").text

    assert 'recovery_http_requests_total{method="POST",route="/jobs/train",status="202"} 1.0' in text
    assert 'recovery_http_requests_total{method="GET",route="/jobs/{job_id}",status="404"} 1.0' in text
    assert 'recovery_http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert 'recovery_jobs{status="queued"} 1.0' in text
    assert 'recovery_queue_length{queue="train"} 1.0' in text
    assert "recovery_redis_up 1.0" in text


def test_metrics_are_there_while_redis_is_away(service_settings: ServiceSettings) -> None:
    away = service_settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_ports(1)[0]}/0"})
    with TestClient(create_app(away)) as client:
        assert "recovery_redis_up 0.0" in client.get("/metrics").text


def test_workers_are_listed_with_what_they_say_of_themselves(client: TestClient, redis: Redis) -> None:
    report = WorkerReport(version="1.2.3", gpus=("NVIDIA L4",), clock_ahead_s=0.5)
    redis.set("worker:train:trainer@gpu", report.model_dump_json(), ex=60)
    redis.set("worker:sample:old@cpu", "", ex=60)

    assert client.get("/workers").json()["workers"] == [
        {"kind": "sample", "name": "old@cpu", "version": None, "gpus": [], "clock_ahead_s": None},
        {"kind": "train", "name": "trainer@gpu", "version": "1.2.3", "gpus": ["NVIDIA L4"], "clock_ahead_s": 0.5},
    ]

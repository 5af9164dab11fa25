"""Liveness, readiness, metrics."""

from __future__ import annotations

import socket
import time

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from service.app import create_app
from service.settings import ServiceSettings
from tests.servers import free_ports
from tests.worker.conftest import make_job
from worker.ids import new_id
from worker.jobs.record import JobStatus, now
from worker.jobs.records import RecordStore
from worker.observe.presence import WorkerReport
from worker.queue.broker import make_app, send_request
from worker.queue.loads import own_queue
from worker.queue.tasks import SampleRequest
from worker.redis_keys import LOADS, SAMPLE_QUEUE


def test_the_process_is_alive_without_asking_anybody(service_settings: ServiceSettings) -> None:
    away = service_settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_ports(1)[0]}/0"})
    with TestClient(create_app(away)) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.head("/healthz").status_code == 200


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


def sample_value(text: str, name: str, **labels: str) -> float | None:
    """One value of an exposition."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


def test_metrics_count_requests_by_template_and_jobs_by_state(client: TestClient) -> None:
    client.post("/jobs/train", json={"preset": "digits"})
    client.get("/jobs/nonsense")
    client.get("/somewhere/else")
    client.request("BREW", "/jobs")

    text = client.get("/metrics").text

    assert 'recovery_http_requests_total{method="POST",route="/jobs/train",status="202"} 1.0' in text
    assert 'recovery_http_requests_total{method="GET",route="/jobs/{job_id}",status="404"} 1.0' in text
    assert 'recovery_http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert sample_value(text, "recovery_http_requests_total", method="other") == 1
    assert "BREW" not in text
    assert sample_value(text, "recovery_http_requests_in_progress") == 1  # this one
    assert sample_value(text, "recovery_jobs", kind="train", status="queued") == 1
    assert sample_value(text, "recovery_jobs", kind="calibrate", status="queued") == 0
    assert sample_value(text, "recovery_queue_length", queue="train") == 1
    assert sample_value(text, "recovery_build_info", component="service") == 1
    assert "recovery_redis_up 1.0" in text
    assert "recovery_s3_up 1.0" in text


def test_metrics_tell_how_long_the_oldest_job_and_request_have_waited(client: TestClient, store: RecordStore) -> None:
    app, waited_s = make_app(store.settings), 100.0
    sent_at = time.time() - waited_s
    for age_s in (0.0, waited_s, 50.0):
        request = SampleRequest(
            request_id=new_id(), model_id=new_id(), num_images=1, seed=0, deadline=sent_at, sent_at=time.time() - age_s
        )
        send_request(app, request, own_queue("one") if age_s == waited_s else SAMPLE_QUEUE)
    store.redis.hset(LOADS, "one", "{}")
    lost, lease = make_job(store, JobStatus.running)
    assert lease is not None
    time.sleep(0.2)
    make_job(store, JobStatus.queued)
    time.sleep(0.6)
    store.lose_attempt(lease, "killed")  # first in the queue again, but it has not waited

    text = client.get("/metrics").text

    sample_age_s = sample_value(text, "recovery_queue_oldest_age_seconds", queue="sample")
    assert sample_age_s is not None
    assert waited_s <= sample_age_s < waited_s + 20
    assert sample_value(text, "recovery_queue_length", queue="sample") == 3
    train_age_s = sample_value(text, "recovery_queue_oldest_age_seconds", queue="train")
    assert train_age_s is not None
    since_lost_s = (now() - store.get(lost.id).created_at).total_seconds()
    assert 0.6 <= train_age_s < since_lost_s
    assert sample_value(text, "recovery_job_attempt_duration_seconds_count", kind="train", outcome="lost") == 1
    assert sample_value(text, "recovery_job_attempts_started_total", kind="train") == 1


def test_two_replicas_show_the_same_fleet_and_each_its_own_requests(service_settings: ServiceSettings) -> None:
    with TestClient(create_app(service_settings)) as one, TestClient(create_app(service_settings)) as two:
        one.post("/jobs/train", json={"preset": "digits"})
        texts = [one.get("/metrics").text, two.get("/metrics").text]
    assert [sample_value(text, "recovery_jobs", kind="train", status="queued") for text in texts] == [1, 1]
    posted = [sample_value(text, "recovery_http_requests_total", route="/jobs/train") for text in texts]
    assert posted == [1, None]


def test_metrics_are_there_while_the_stores_are_away(service_settings: ServiceSettings) -> None:
    redis_port, s3_port = free_ports(2)
    changes = {"redis_url": f"redis://127.0.0.1:{redis_port}/0", "s3_endpoint_url": f"http://127.0.0.1:{s3_port}"}
    with TestClient(create_app(service_settings.model_copy(update=changes))) as client:
        text = client.get("/metrics").text
    assert "recovery_redis_up 0.0" in text
    assert "recovery_s3_up 0.0" in text


def test_metrics_are_there_while_the_stores_hang(service_settings: ServiceSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it lets clients in and says nothing
        port = silent.getsockname()[1]
        changes = {"redis_url": f"redis://127.0.0.1:{port}/0", "s3_endpoint_url": f"http://127.0.0.1:{port}"}
        with TestClient(create_app(service_settings.model_copy(update=changes))) as client:
            began_at = time.monotonic()
            text = client.get("/metrics").text
            elapsed_s = time.monotonic() - began_at
    assert "recovery_redis_up 0.0" in text
    assert "recovery_s3_up 0.0" in text
    assert elapsed_s < 5  # Prometheus gives a scrape up after 10 s


def test_workers_are_listed_with_what_they_say_of_themselves(client: TestClient, redis: Redis) -> None:
    report = WorkerReport(version="1.2.3", gpus=("NVIDIA L4",), clock_ahead_s=0.5)
    redis.set("worker:train:trainer@gpu", report.model_dump_json(), ex=60)
    redis.set("worker:sample:old@cpu", "", ex=60)

    assert client.get("/workers").json()["workers"] == [
        {"kind": "sample", "name": "old@cpu", "version": None, "gpus": [], "clock_ahead_s": None},
        {"kind": "train", "name": "trainer@gpu", "version": "1.2.3", "gpus": ["NVIDIA L4"], "clock_ahead_s": 0.5},
    ]

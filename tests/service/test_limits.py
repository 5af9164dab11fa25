"""Limits of one caller: the rate of requests, jobs at a time, and the work and size of one answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from service.app import create_app
from service.door.keys import KeyFile, Scope
from service.door.limits import RateLimit
from service.door.security import Caller
from service.http.errors import Problem
from service.settings import ServiceSettings
from tests.servers import free_ports
from tests.service.conftest import StandInSampler
from worker.connect import async_redis_client
from worker.jobs.records import RecordStore
from worker.queue.tasks import SampleReply, SampleRequest

SMALL = {"preset": "digits", "steps": 44}


def client_with(settings: ServiceSettings, **changes: Any) -> TestClient:
    """A client of an application with other settings."""
    return TestClient(create_app(settings.model_copy(update=changes)), raise_server_exceptions=False)


def test_more_than_the_rate_is_a_429_that_says_when_to_come_back(service_settings: ServiceSettings) -> None:
    with client_with(service_settings, rate_limit_per_s=0.5, rate_limit_burst=3) as client:
        answers = [client.get("/jobs") for _ in range(5)]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["RateLimit"].partition(";t=")[0] for answer in answers] == [
        '"default";r=2',
        '"default";r=1',
        '"default";r=0',
        '"default";r=0',
        '"default";r=0',
    ]
    refused = answers[-1]
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["RateLimit-Policy"] == '"default";q=3;w=6'
    assert refused.headers["Retry-After"] in ("1", "2")
    assert "0.5 requests a second" in refused.json()["detail"]


def test_the_rate_holds_over_time_and_after_waiting_as_told(service_settings: ServiceSettings) -> None:
    settings = service_settings.model_copy(update={"rate_limit_per_s": 20.0, "rate_limit_burst": 4})

    async def allowed_in(seconds: float) -> int:
        redis = async_redis_client(settings)
        limit, allowed, end = RateLimit(redis, settings), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(Problem):
                await limit.count(Caller("address:tests"))
                allowed += 1
            await asyncio.sleep(0.01)
        await redis.aclose()
        return allowed

    # 4 at once and 20 a second after; a machine that is busy can only allow fewer.
    assert 4 < asyncio.run(allowed_in(1.0)) <= 25


def test_callers_do_not_use_up_each_others_rate(service_settings: ServiceSettings, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    first, second = ({"Authorization": f"Bearer {file.create(n, [Scope.read])[0]}"} for n in "ab")
    changes = {"keys_file": file.path, "rate_limit_per_s": 0.1, "rate_limit_burst": 1}
    with client_with(service_settings, **changes) as client:
        statuses = [client.get("/models", headers=headers).status_code for headers in (first, first, second, second)]

    assert statuses == [200, 429, 200, 429]


def test_probes_are_not_limited(service_settings: ServiceSettings) -> None:
    with client_with(service_settings, rate_limit_per_s=0.1, rate_limit_burst=1) as client:
        assert {client.get("/healthz").status_code for _ in range(5)} == {200}


def test_what_a_caller_leaves_in_redis_is_gone_when_its_rate_is_back(
    service_settings: ServiceSettings, redis: Redis
) -> None:
    with client_with(service_settings, rate_limit_per_s=0.1, rate_limit_burst=2) as client:
        client.get("/models")

    assert redis.keys("rate:*") == [b"rate:address:unknown"]
    assert 0 < int(redis.pttl("rate:address:unknown")) <= 10_000


def test_without_redis_the_rate_is_not_limited(service_settings: ServiceSettings) -> None:
    away = {"redis_url": f"redis://127.0.0.1:{free_ports(1)[0]}/0", "rate_limit_per_s": 0.1, "rate_limit_burst": 1}
    with client_with(service_settings, **away) as client:
        answers = [client.get("/models") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert "RateLimit" not in answers[0].headers


@pytest.fixture
def keyed(service_settings: ServiceSettings, tmp_path: Path) -> Iterator[TestClient]:
    """A client with a key that may have two jobs."""
    text, _ = KeyFile(tmp_path / "keys.json").create("tests", list(Scope))
    with client_with(service_settings, keys_file=tmp_path / "keys.json", max_jobs_per_key=2) as client:
        client.headers["Authorization"] = f"Bearer {text}"
        yield client


def test_a_key_may_have_so_many_jobs_and_more_when_one_ends(keyed: TestClient) -> None:
    first, second = (keyed.post("/jobs/train", json=SMALL).json()["id"] for _ in range(2))

    refused = keyed.post("/jobs/train", json=SMALL)
    assert refused.status_code == 429
    assert refused.json()["type"] == "urn:recovery:problem:too-many-jobs"
    assert refused.headers["Retry-After"] == "60"
    assert len(keyed.get("/jobs").json()["jobs"]) == 2

    keyed.post(f"/jobs/{first}/cancel")
    assert keyed.post("/jobs/train", json=SMALL).status_code == 202
    assert keyed.post(f"/jobs/{first}/resume").status_code == 429
    keyed.post(f"/jobs/{second}/cancel")
    assert keyed.post(f"/jobs/{first}/resume").status_code == 202
    assert keyed.post("/jobs/train", json=SMALL).status_code == 429


def test_a_refused_request_takes_no_place(keyed: TestClient, redis: Redis) -> None:
    for _ in range(5):
        assert keyed.post("/jobs/train", json={"preset": "nonsense"}).status_code == 422

    assert redis.keys("quota:*") == []
    assert [keyed.post("/jobs/train", json=SMALL).status_code for _ in range(3)] == [202, 202, 429]


def test_without_keys_jobs_are_not_counted(service_settings: ServiceSettings, store: RecordStore) -> None:
    with client_with(service_settings, max_jobs_per_key=1) as client:
        assert {client.post("/jobs/train", json=SMALL).status_code for _ in range(3)} == {202}
    assert len(store.list().records) == 3


def test_more_chain_steps_than_one_request_may_cost_are_refused(
    service_settings: ServiceSettings, model_id: str
) -> None:
    with client_with(service_settings, max_chain_steps=10_000) as client:
        refused = client.post("/sample", json={"model": model_id, "num_images": 100, "steps": 20})
        fewer = client.post("/sample", json={"model": model_id, "num_images": 10, "steps": 20})

    assert refused.status_code == 422
    assert "28000 steps" in refused.json()["detail"]
    assert fewer.json()["type"].endswith("no-sampler")


def test_more_pixels_than_one_answer_may_have_are_refused(
    service_settings: ServiceSettings, model_id: str, redis: Redis
) -> None:
    def reply(request: SampleRequest) -> SampleReply:
        x = np.zeros((request.num_images, 1, 8, 8), np.float32)
        return SampleReply(request_id=request.request_id, ok=True, model_id=model_id, step=100, seed=0, x=x)

    with client_with(service_settings, max_pixels=10_000) as client, StandInSampler(redis, reply).serving():
        body = {"model": model_id, "num_images": 4}
        refused = client.post("/sample", json={**body, "scale": 32})
        as_zip = client.post("/sample", json={**body, "scale": 32}, headers={"Accept": "application/zip"})
        as_numbers = client.post("/sample", json={**body, "scale": 32}, headers={"Accept": "application/x-npy"})
        smaller = client.post("/sample", json={**body, "scale": 4})

    assert refused.status_code == as_zip.status_code == 422
    assert "262144 pixels" in refused.json()["detail"]
    assert as_numbers.status_code == smaller.status_code == 200

"""Every hostile upload is refused by name, and nothing of it stays: not in S3, not in Redis, not on the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from redis import Redis

from service.app import create_app
from service.settings import ServiceSettings
from tests.servers import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS, Valkey
from tests.service.hostile import Hostile
from tests.service.hostile_datasets import CASES, LIMITS, MAX_DATASET_BYTES
from worker.artifacts import Artifacts
from worker.connect import redis_client


@pytest.fixture(scope="module")
def settings(valkey: Valkey, seaweedfs: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> ServiceSettings:
    """Small limits; one application serves all cases, since none of them changes anything."""
    values = {
        "redis_url": valkey.url,
        "s3_endpoint_url": seaweedfs.url,
        "s3_bucket": BUCKET,
        "s3_access_key": SecretStr(ACCESS_KEY),
        "s3_secret_key": SecretStr(SECRET_KEY),
        "datasets_dir": tmp_path_factory.mktemp("sets"),
        "max_dataset_bytes": MAX_DATASET_BYTES,
        **LIMITS,
    }
    return ServiceSettings.model_validate(values)


@pytest.fixture(scope="module")
def s3(settings: ServiceSettings) -> Artifacts:
    """The session's bucket, emptied once."""
    artifacts = Artifacts.connect(settings)
    for key, _, _ in artifacts.list_keys(""):
        artifacts.delete(key)
    return artifacts


@pytest.fixture(scope="module")
def redis(settings: ServiceSettings) -> Iterator[Redis]:
    """The session's Redis, emptied once."""
    with redis_client(settings) as found:
        found.flushall()
        yield found


@pytest.fixture(scope="module")
def client(settings: ServiceSettings, s3: Artifacts, redis: Redis) -> Iterator[TestClient]:  # noqa: ARG001
    """A client of the application."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as found:
        yield found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_and_leaves_nothing_behind(
    case: Hostile, client: TestClient, s3: Artifacts, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    answer = client.request(**case.request())
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (case.status, f"urn:recovery:problem:{case.type}"), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(problem["detail"]) > 15
    assert "\n" not in problem["detail"]
    assert list(s3.list_keys("")) == []
    assert redis.keys("*") == []
    assert list(tmp_path.iterdir()) == []
    assert not Path("/tmp/recovery-was-unpickled").exists()


def test_names_of_cases_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60

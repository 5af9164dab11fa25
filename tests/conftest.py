"""Fixtures every package's tests share: one Valkey and one SeaweedFS for the whole session, started when first used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from tests.servers import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS, Valkey, running_seaweedfs, running_valkey
from worker.connect import redis_client
from worker.jobs.records import RecordStore
from worker.settings import Settings
from worker.storage.artifacts import Artifacts


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """The server itself."""
    with running_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """The server itself."""
    with running_seaweedfs(tmp_path_factory.mktemp("weed") / "data") as server:
        yield server


@pytest.fixture
def valkey_url(valkey: Valkey) -> str:
    """URL of an empty Redis."""
    client = Redis.from_url(valkey.url)
    client.flushall()
    client.close()
    return valkey.url


@pytest.fixture
def settings(valkey: Valkey, valkey_url: str, seaweedfs: SeaweedFS, tmp_path: Path) -> Settings:
    """Settings for the test servers, Redis emptied, with short times and a spool of the test's own."""
    assert valkey_url == valkey.url
    return settings_for(valkey, seaweedfs, tmp_path)


def settings_for(valkey: Valkey, seaweedfs: SeaweedFS, directory: Path) -> Settings:
    """Settings for these servers, with short times and a spool below the directory."""
    return Settings(
        redis_url=valkey.url,
        s3_endpoint_url=seaweedfs.url,
        s3_bucket=BUCKET,
        s3_access_key=SecretStr(ACCESS_KEY),
        s3_secret_key=SecretStr(SECRET_KEY),
        lease_s=3.0,  # two seconds were missed once, on a machine that was busy otherwise
        heartbeat_s=0.5,
        reaper_every_s=0.3,
        cancel_grace_s=5.0,
        kill_grace_s=10.0,
        spool_dir=directory / "spool",
    )


@pytest.fixture
def s3(settings: Settings) -> Artifacts:
    """The session's bucket, emptied."""
    artifacts = Artifacts.connect(settings)
    for key, _, _ in artifacts.list_keys(""):
        artifacts.delete(key)
    return artifacts


@pytest.fixture
def store(settings: Settings, s3: Artifacts) -> Iterator[RecordStore]:
    """A record store over an empty Redis."""
    redis = redis_client(settings)
    yield RecordStore(redis, s3, settings)
    redis.close()


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """These settings as environment variables, for processes a test starts."""
    return environment_of(settings)


def environment_of(settings: Settings) -> dict[str, str]:
    """Settings as the environment variables they are read from."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return {
        f"RECOVERY_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values.items()
        if value is not None
    }

"""What the tests of all packages share: the servers and the stack they run on, and which tests a run collects.

Each server, and the stack, is started once in a session, when a test first asks for it. Tests that ask for one of them
are marked `stack`, so that `make test-fast` can leave them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from pydantic import SecretStr
from redis import Redis

from service.client import Recovery
from tests.servers import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS, Valkey, running_seaweedfs, running_valkey
from tests.stack import UpCommand
from worker.connect import redis_client
from worker.jobs.records import RecordStore
from worker.settings import Settings
from worker.storage.artifacts import Artifacts

SERVERS = frozenset({"valkey", "seaweedfs", "command"})
"""Fixtures that start processes which other tests of the session share."""
ASKED_FOR = ("docs", "observability")
"""Marks of tests that run only when `-m` names them."""
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)  # how long an example takes says how busy the machine is
hypothesis.settings.load_profile("busy")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that need a running server, and leave out those that nobody asked for."""
    for item in items:
        if SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("stack")
    unwanted = [mark for mark in ASKED_FOR if mark not in config.option.markexpr]
    left_out = [item for item in items if any(item.get_closest_marker(mark) for mark in unwanted)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCommand]:
    """A running `recovery up` on an empty folder, for every test that does not stop it."""
    found = UpCommand(tmp_path_factory.mktemp("stack") / "recovery-data")
    try:
        found.wait_until_ready().close()
        yield found
    finally:
        assert found.end() == 0, found.output


@pytest.fixture(scope="session")
def recovery(command: UpCommand) -> Iterator[Recovery]:
    """A client of the running stack."""
    with Recovery(command.url) as found:
        yield found


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
        deletion_grace_s=2.0,
        cancel_grace_s=30.0,  # guards: only a machine that is very busy needs so long
        kill_grace_s=30.0,
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

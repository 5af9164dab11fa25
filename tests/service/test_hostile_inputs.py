"""Requests that mean harm, or might: each is refused with the right status and a way out, and leaves nothing behind."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from service.app import create_app
from service.door.keys import KeyFile, Scope
from service.settings import ServiceSettings
from tests.conftest import settings_for
from tests.servers import SeaweedFS, Valkey
from tests.service.conftest import calibration, store_model
from tests.service.hostile import Hostile
from tests.service.hostile_datasets import CASES as DATASET_CASES
from tests.service.hostile_datasets import LIMITS, MAX_DATASET_BYTES
from tests.service.hostile_requests import CASES as REQUEST_CASES
from tests.service.hostile_requests import MODEL, Bomb
from worker.storage.artifacts import Artifacts

CASES = [*REQUEST_CASES, *(replace(case, name=f"upload: {case.name}") for case in DATASET_CASES)]
REMEDY = re.compile(
    r"expected|send|give|use|ask|list|set |try|leave|start|make|remove|should|must|can be|needs|at most|docs|only"
    r"|there are|this model has|pack|save|upload|export|larger|smaller|without|rename|check|convert|fill|write"
    r"|keep|split|[Rr]emove|rescale|is it|allowed"
)


@dataclass(frozen=True)
class Target:
    """A service with one model, and everything that it could leave something in."""

    client: TestClient
    s3: Artifacts
    redis: Redis
    directory: Path

    def stored(self) -> dict[str, Any]:
        """All that is kept anywhere, but how often somebody asked."""
        keys = [found for found in self.redis.scan_iter() if not found.startswith(b"rate:")]
        return {
            **{f"s3:{name}": size for name, size, _ in self.s3.list_keys("")},
            **{f"redis:{found.decode()}": self.redis.dump(found) for found in keys},
            **{f"file:{path}": path.stat().st_mtime_ns for path in self.directory.rglob("*") if path.is_file()},
        }


@pytest.fixture(scope="module")
def target(valkey: Valkey, seaweedfs: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One for all cases, since none of them may change it; with a key that may do everything."""
    directory = tmp_path_factory.mktemp("hostile")
    settings = settings_for(valkey, seaweedfs, directory)
    text, _ = KeyFile(directory / "keys.json").create("tests", [Scope.admin])
    (directory / "datasets").mkdir()
    (directory / "temporary").mkdir()
    s3, redis = Artifacts.connect(settings), Redis.from_url(valkey.url)
    redis.flushall()  # what other tests left may expire meanwhile, and would look like a change
    store_model(s3, directory, "digits", model_id=MODEL)
    s3.put_calibration(MODEL, 100, calibration((1, 8, 8)).to_dict())
    redis.set("worker:sample:tests", "")  # whatever a sampler might be asked would stay in its queue
    limits = {
        "max_body_bytes": 20_000,
        "max_density_body_bytes": 600_000,
        "max_dataset_bytes": MAX_DATASET_BYTES,
        "rate_limit_per_s": 10_000,
        **LIMITS,
    }
    folders = {"keys_file": directory / "keys.json", "datasets_dir": directory / "datasets"}
    app = create_app(ServiceSettings(**settings.model_dump() | limits | folders))
    with TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {text}"}) as client, redis:
        yield Target(client, s3, redis, directory)
        redis.delete("worker:sample:tests")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_with_a_way_out_and_leaves_nothing_behind(
    case: Hostile, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(target.directory / "temporary"))
    before = target.stored()

    answer = target.client.request(**case.request())

    assert answer.status_code == case.status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:recovery:problem:{case.type}"
    assert problem["status"] == case.status
    assert len(problem["detail"]) > 20
    assert REMEDY.search(problem["detail"]), problem["detail"]
    assert target.stored() == before
    assert not Bomb.mark.exists()
    assert not Path("/tmp/recovery-was-unpickled").exists()


def test_there_are_many_cases_each_with_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60

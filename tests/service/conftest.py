"""The application on the session's real Valkey and SeaweedFS; tests play the workers' part over the same protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from model.config import to_dict
from model.presets import preset
from service.app import create_app
from service.settings import ServiceSettings
from worker.artifacts import Artifacts
from worker.connect import redis_client
from worker.ids import new_id
from worker.messages import ReplyChannel, SampleReply, SampleRequest
from worker.settings import Settings

AnswerFn = Callable[[SampleRequest], SampleReply]


@pytest.fixture
def service_settings(settings: Settings) -> ServiceSettings:
    """The workers' test settings with the service's own limits, short."""
    return ServiceSettings(**settings.model_dump(), sample_timeout_s=2.0, max_body_bytes=20_000)


@pytest.fixture
def client(service_settings: ServiceSettings) -> Iterator[TestClient]:
    """A client of the application; errors of the server are answers, not exceptions of the test."""
    with TestClient(create_app(service_settings), raise_server_exceptions=False) as found:
        yield found


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    """A plain client."""
    with redis_client(settings) as found:
        yield found


@pytest.fixture
def model_id(s3: Artifacts, tmp_path: Path) -> str:
    """A stored model of the `digits` preset with a committed checkpoint of step 100."""
    return store_model(s3, tmp_path, "digits")


def store_model(s3: Artifacts, directory: Path, name: str) -> str:
    """A model of a preset, as a trainer leaves it, with weights nobody will read."""
    model_id = new_id()
    description = {
        "name": "tests",
        "dataset": preset(name).dataset,
        "config": to_dict(preset(name)),
        "job_id": new_id(),
        "created_at": "2026-11-23T12:00:00Z",
    }
    s3.put_model(model_id, description)
    checkpoint = directory / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "ema.safetensors").write_bytes(b"weights")
    s3.commit_checkpoint(model_id, 100, checkpoint)
    return model_id


@dataclass
class StandInSampler:
    """Takes requests from the queue and answers them, in a thread, as a sampler worker does."""

    redis: Redis
    answer_fn: AnswerFn
    requests: list[SampleRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    @contextlib.contextmanager
    def serving(self) -> Iterator[StandInSampler]:
        """Alive within the block."""
        self.redis.set("worker:sample:stand-in", "", ex=60)
        self._thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            self._thread.join()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            found = self.redis.blpop(["sample"], timeout=0.1)
            if found is None:
                continue
            message = json.loads(found[1])
            (argument,), _, _ = json.loads(base64.b64decode(message["body"]))
            request = SampleRequest.model_validate(argument)
            self.requests.append(request)
            ReplyChannel(request.request_id).push(self.redis, self.answer_fn(request))

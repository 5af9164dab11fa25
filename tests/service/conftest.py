"""The application on the session's real Valkey and SeaweedFS; tests play the workers' part over the same protocol."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from model.config import to_dict
from model.densities.calibration import Calibration, Quantile
from model.densities.log_z import LogZ
from model.presets import preset
from service.app import create_app
from service.settings import ServiceSettings
from worker.connect import redis_client
from worker.ids import new_id
from worker.queue.messages import FloatArray, ReplyChannel, SamplerReply, input_key
from worker.queue.tasks import TASKS, DensityRequest
from worker.settings import Settings
from worker.storage.artifacts import Artifacts

AnswerFn = Callable[[Any], SamplerReply]


@pytest.fixture
def service_settings(settings: Settings) -> ServiceSettings:
    """The workers' test settings with the service's own limits, short."""
    return ServiceSettings(
        **settings.model_dump(),
        sample_timeout_s=2.0,
        max_body_bytes=20_000,
        max_density_body_bytes=600_000,
        rate_limit_per_s=10_000,  # tests are quicker than people
    )


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


def store_model(s3: Artifacts, directory: Path, name: str, *, model_id: str | None = None) -> str:
    """A model of a preset, as a trainer leaves it, with weights nobody will read."""
    model_id = model_id or new_id()
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


def calibration(event_shape: tuple[int, ...], step: int = 100) -> Calibration:
    """One as a trainer stores it."""
    log_z = LogZ(
        lower=-10.1,
        upper=-9.9,
        lower_std_error=0.0,
        upper_std_error=0.0,
        lower_effective_sample_size=400.0,
        upper_effective_sample_size=300.0,
        acceptance_rate=0.7,
        num_chains=512,
        num_bridges=4,
        upper_start="chain",
    )
    return Calibration(
        step=step,
        event_shape=event_shape,
        log_z=log_z,
        seed=0,
        tolerance=0.1,
        num_held_out=897,
        held_out_log_density=61.0,
        held_out_bits_per_dim=2.5 if len(event_shape) == 3 else None,
        bin_width=1 / 8 if len(event_shape) == 3 else None,
        blur_std=0.06,
        train_quantiles=(Quantile(level=0.5, log_density=60.0),),
        created_at="2026-11-23T12:00:00+00:00",
    )


@dataclass
class StandInSampler:
    """Takes requests from the queue and answers them, in a thread, as a sampler worker does."""

    redis: Redis
    answer_fn: AnswerFn
    requests: list[Any] = field(default_factory=list)
    arrays: list[FloatArray] = field(default_factory=list)
    """What came with density requests."""

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
            (task,) = (task for task in TASKS if task.name == message["headers"]["task"])
            request = task.request.model_validate(argument)
            if isinstance(request, DensityRequest):
                packed: Any = self.redis.get(input_key(request.request_id))
                self.arrays.append(np.load(io.BytesIO(packed), allow_pickle=False))
            self.requests.append(request)
            ReplyChannel(request.request_id).push(self.redis, self.answer_fn(request))

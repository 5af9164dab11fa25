"""What crosses the queue and comes back: sample requests, their replies, and the names both sides agree on.

A training message carries a job id and nothing else: the record is the truth. A sample request carries everything,
since its client waits and nothing of it is stored. Replies go through a Redis list of their own, not through Celery's
result backend, which has no asynchronous API. Imports neither torch nor Celery.
"""

from __future__ import annotations

import io
import json
import math
import struct
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from worker.ids import ULID_PATTERN

TRAIN_TASK = "worker.tasks.train"
SAMPLE_TASK = "worker.tasks.sample"
TRAIN_QUEUE = "train"
SAMPLE_QUEUE = "sample"

MAX_BLOCK_S = 4.0
"""One blocking Redis call waits at most so long: redis-py's default socket timeout is 5 s."""

FloatArray = NDArray[np.float32]
ReplyError = Literal[
    "unknown_model", "no_checkpoint", "bad_request", "deadline_passed", "storage_unavailable", "internal"
]


class ReplyTimeout(TimeoutError):
    """No worker answered in time."""


class SampleRequest(BaseModel):
    """Draw `num_images` samples of a model; image i of a seed does not depend on their number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_id: str = Field(pattern=ULID_PATTERN)
    model_id: str = Field(pattern=ULID_PATTERN)
    step: int | None = Field(default=None, ge=0)
    """Checkpoint; None is the newest."""
    num_images: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0, lt=2**63)
    num_steps: int | None = Field(default=None, ge=0, le=10_000)
    """K, chain steps per level; None is the model's own."""
    noise_scale: float | None = Field(default=None, ge=0, le=2)
    levels: tuple[int, ...] = ()
    """Levels whose x_t is returned too."""
    sent_at: float = Field(default_factory=time.time)
    """Unix time, seconds."""
    deadline: float
    """Unix time, seconds: after it nobody waits any more, and the request is dropped."""

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.time()


class Timings(BaseModel):
    """Where the time of a request went, seconds."""

    model_config = ConfigDict(frozen=True)

    queue_s: float = 0.0
    load_s: float = 0.0
    compute_s: float = 0.0


class SampleReply(BaseModel):
    """The answer to one SampleRequest: arrays, or an error code with a sentence for the client."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    request_id: str
    ok: bool
    error: ReplyError | None = None
    detail: str | None = None
    """What was wrong and what to do, in words."""
    model_id: str
    step: int | None = None
    """The checkpoint that was used."""
    seed: int
    gradient_evaluations: int = 0
    """Per sample."""
    timings: Timings = Timings()
    x: FloatArray | None = Field(default=None, exclude=True, repr=False)
    """(N, *event), images in [−1, 1]."""
    levels: dict[int, FloatArray] = Field(default_factory=dict, exclude=True, repr=False)
    """Intermediate x_t by level, each (N, *event)."""

    def encode(self) -> bytes:
        """Length of the JSON header (4 bytes, little endian), the header, and one .npy per array in its order."""
        arrays = {} if self.x is None else {"x": self.x, **{str(t): x for t, x in self.levels.items()}}
        header = self.model_dump(mode="json") | {"arrays": list(arrays)}
        packed = json.dumps(header).encode()
        body = io.BytesIO()
        for array in arrays.values():
            np.save(body, array.astype(np.float32, copy=False), allow_pickle=False)
        return struct.pack("<I", len(packed)) + packed + body.getvalue()

    @classmethod
    def decode(cls, data: bytes) -> SampleReply:
        """The reply whose `encode` was `data`. Raises ValueError for anything else."""
        (length,) = struct.unpack_from("<I", data)
        header: dict[str, Any] = json.loads(data[4 : 4 + length])
        body = io.BytesIO(data[4 + length :])
        arrays = {name: np.load(body, allow_pickle=False) for name in header.pop("arrays")}
        x = arrays.pop("x", None)
        return cls(**header, x=x, levels={int(name): array for name, array in arrays.items()})


def failed_reply(request: SampleRequest, error: ReplyError, detail: str, timings: Timings | None = None) -> SampleReply:
    """A reply that says in words why there are no samples."""
    return SampleReply(
        request_id=request.request_id,
        ok=False,
        error=error,
        detail=detail,
        model_id=request.model_id,
        step=request.step,
        seed=request.seed,
        timings=timings or Timings(),
    )


def request_from_message(message: Mapping[str, Any]) -> SampleRequest:
    """The request in a Celery message. Raises pydantic.ValidationError."""
    return SampleRequest.model_validate(message)


class ReplyChannel:
    """The way back of one request: a Redis list that lives for `ttl_s` seconds."""

    def __init__(self, request_id: str, *, ttl_s: float = 60.0) -> None:
        self.key = f"reply:{request_id}"
        self.ttl_s = ttl_s

    def push(self, redis: Redis, reply: SampleReply) -> None:
        """Send the reply (worker's side)."""
        pipeline = redis.pipeline()
        pipeline.rpush(self.key, reply.encode())
        pipeline.expire(self.key, math.ceil(self.ttl_s))
        pipeline.execute()

    async def wait(self, redis: AsyncRedis, timeout_s: float) -> SampleReply:
        """The reply (service's side). Raises ReplyTimeout after `timeout_s`."""
        give_up_at = time.monotonic() + timeout_s
        while (remaining_s := give_up_at - time.monotonic()) > 0:
            # A timeout of 0 would block for ever.
            found: Any = await redis.blpop([self.key], timeout=max(0.05, min(MAX_BLOCK_S, remaining_s)))
            if found is not None:
                return SampleReply.decode(found[1])
        raise ReplyTimeout(f"no sampler answered within {timeout_s:g} s; a sampler worker may be missing or overloaded")

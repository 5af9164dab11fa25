"""What crosses the queue and comes back: what all requests to the samplers share, their replies, and the way back.

A job's message carries a job id and nothing else: the record is the truth. A request to a sampler carries everything
but large arrays, since its client waits and nothing of it is stored; an array travels beside it, under a Redis key that
expires. Replies go through a Redis list of their own, not through Celery's result backend, which has no asynchronous
API. Which requests there are is tasks.py. This module imports neither torch nor Celery.
"""

from __future__ import annotations

import io
import json
import math
import struct
import time
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from model.config import Precision
from worker.ids import ULID_PATTERN
from worker.redis_keys import CANCEL, INPUT, REPLY

JOB_TASK = "worker.tasks.train"
"""The message of a job of any kind: it wakes a trainer, which runs the job that is next. Every version knows this name.
"""
OLDER_JOB_TASKS = ("worker.tasks.calibrate", "worker.tasks.bulk")
"""What an earlier version of the service sends to the same end."""

MAX_BLOCK_S = 4.0
"""One blocking Redis call waits at most so long: redis-py's default socket timeout is 5 s."""

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
R = TypeVar("R", bound="SamplerReply")
ReplyError = Literal[
    "unknown_model",
    "no_checkpoint",
    "not_calibrated",
    "bad_request",
    "deadline_passed",
    "storage_unavailable",
    "busy",
    "cancelled",
    "stopped",
    "internal",
]


class ReplyTimeout(TimeoutError):
    """No worker answered in time."""


class SamplerRequest(BaseModel):
    """What every request to a sampler says: which model is meant, and how long its client waits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: ClassVar[str]
    """Name of the Celery task that answers it."""

    request_id: str = Field(pattern=ULID_PATTERN)
    model_id: str = Field(pattern=ULID_PATTERN)
    step: int | None = Field(default=None, ge=0)
    """Checkpoint; None is the newest."""
    sent_at: float = Field(default_factory=time.time)
    """Unix time, seconds."""
    deadline: float
    """Unix time, seconds: after it nobody waits any more, and the request is dropped."""

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.time()

    @property
    def network_precision(self) -> Precision:
        """The precision of the network's arithmetic."""
        return "float32"


class Timings(BaseModel):
    """Where the time of a request went, seconds."""

    model_config = ConfigDict(frozen=True)

    queue_s: float = 0.0
    load_s: float = 0.0
    compute_s: float = 0.0


class SamplerReply(BaseModel):
    """The answer to one request: what was asked for, or an error code with a sentence for the client."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    request_id: str
    ok: bool
    error: ReplyError | None = None
    detail: str | None = None
    """What was wrong and what to do, in words."""
    retry_after_s: float | None = None
    """With `busy`: when there will be room, by the measured rate."""
    model_id: str
    step: int | None = None
    """The checkpoint that was used."""
    gradient_evaluations: int = 0
    """Per sample, or per scored event."""
    timings: Timings = Timings()

    @property
    def is_last(self) -> bool:
        """Whether no other reply to the same request follows."""
        return True

    @classmethod
    def failed(
        cls,
        request: SamplerRequest,
        error: ReplyError,
        detail: str,
        timings: Timings | None = None,
        *,
        retry_after_s: float | None = None,
    ) -> Self:
        """A reply that says in words why there is nothing else."""
        shared = request.model_dump(include={"request_id", "model_id", "step", "seed"})
        timings = timings or Timings()
        return cls(ok=False, error=error, detail=detail, timings=timings, retry_after_s=retry_after_s, **shared)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What travels beside the header, by name."""
        return {}

    @classmethod
    def from_arrays(cls, header: dict[str, Any], arrays: dict[str, Any]) -> Self:
        """The reply of that header and those `arrays`."""
        return cls(**header, **arrays)

    def encode(self) -> bytes:
        """Length of the JSON header (4 bytes, little endian), the header, and one .npy per array in its order."""
        arrays = self.arrays()
        header = self.model_dump(mode="json") | {"arrays": list(arrays)}
        packed = json.dumps(header).encode()
        body = io.BytesIO()
        for array in arrays.values():
            np.save(body, array, allow_pickle=False)
        return struct.pack("<I", len(packed)) + packed + body.getvalue()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The reply whose `encode` was `data`. Raises ValueError for anything else."""
        (length,) = struct.unpack_from("<I", data)
        header: dict[str, Any] = json.loads(data[4 : 4 + length])
        body = io.BytesIO(data[4 + length :])
        arrays = {name: np.load(body, allow_pickle=False) for name in header.pop("arrays")}
        return cls.from_arrays(header, arrays)


def not_calibrated(model_id: str, step: int) -> str:
    """The sentence for a checkpoint without a calibration, with the remedy."""
    return (
        f"checkpoint {step} of model {model_id} is not calibrated, so its log Z is unknown; "
        f'POST /jobs/calibrate with {{"model": "{model_id}@{step}"}}, and try again when that job has succeeded'
    )


def input_key(request_id: str) -> str:
    """Where the array of a DensityRequest lies in Redis, as .npy bytes, until it expires."""
    return INPUT.of(request_id)


def cancel_key(request_id: str) -> str:
    """Where the service says that the client of a request has left."""
    return CANCEL.of(request_id)


class ReplyChannel:
    """The way back of one request: a Redis list that lives for `ttl_s` seconds."""

    def __init__(self, request_id: str, *, ttl_s: float = 60.0) -> None:
        self.key = REPLY.of(request_id)
        self.ttl_s = ttl_s

    def push(self, redis: Redis, reply: SamplerReply) -> None:
        """Send the reply (worker's side)."""
        pipeline = redis.pipeline()
        pipeline.rpush(self.key, reply.encode())
        pipeline.expire(self.key, math.ceil(self.ttl_s))
        pipeline.execute()

    async def wait(self, redis: AsyncRedis, kind: type[R], timeout_s: float) -> R:
        """The next reply, of that kind (service's side). Raises ReplyTimeout after `timeout_s`."""
        give_up_at = time.monotonic() + timeout_s
        while (remaining_s := give_up_at - time.monotonic()) > 0:
            # A timeout of 0 would block for ever.
            found: Any = await redis.blpop([self.key], timeout=max(0.05, min(MAX_BLOCK_S, remaining_s)))
            if found is not None:
                return kind.decode(found[1])
        raise ReplyTimeout(f"no sampler answered within {timeout_s:g} s; a sampler worker may be missing or overloaded")

"""What a sampler and the service tell each other beside requests and replies: who left, how busy the sampler is, and
which of its models were deleted.

All are read and written by asking again, not by subscription: a store that was away loses nothing but time.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import RedisError

from worker.queue.loads import SamplerLoad, packed
from worker.queue.messages import cancel_key
from worker.redis_keys import LOADS
from worker.sampler.sampler import Sampler
from worker.storage.artifacts import StorageUnavailable

log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 0.1
"""A client that left is noticed after so long at most."""
_TELL_EVERY_S = 0.5
_FORGET_S = 3600.0
_CHECK_EVERY_S = 2.0
"""A model that was deleted leaves the sampler's memory after so long at most, once no request is under way on it."""


class Switchboard:
    """The sampler's end of it: a thread for Redis, and one for storage, which may hang longer."""

    def __init__(self, redis: Redis, sampler: Sampler, name: str) -> None:
        self._redis = redis
        self._sampler = sampler
        self._name = name
        self._told_at = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="switchboard", daemon=True)
        self._checking = threading.Thread(target=self._check, name="deleted-models", daemon=True)

    def start(self) -> None:
        """Go on until `stop`."""
        self._thread.start()
        self._checking.start()

    def stop(self) -> None:
        """Withdraw the load."""
        self._stopped.set()
        self._thread.join(timeout=10)
        try:
            self._redis.hdel(LOADS, self._name)
        except RedisError as error:
            log.warning("load_not_withdrawn", error=type(error).__name__)

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY_S):
            try:
                self._look()
                if time.monotonic() - self._told_at > _TELL_EVERY_S:
                    self._tell()
            except RedisError as error:
                log.warning("switchboard_without_redis", error=type(error).__name__)

    def _check(self) -> None:
        while not self._stopped.wait(_CHECK_EVERY_S):
            try:
                self._sampler.drop_deleted()
            except StorageUnavailable as error:
                log.warning("deleted_models_not_looked_for", error=type(error).__name__)

    def _look(self) -> None:
        """Cancel the requests whose clients left."""
        requests = self._sampler.open_requests()
        if not requests:
            return
        found: Any = self._redis.mget([cancel_key(request_id) for request_id in requests])
        for request_id, left in zip(requests, found, strict=True):
            if left is not None:
                self._sampler.cancel(request_id)

    def _tell(self) -> None:
        load = self._sampler.load()
        told = SamplerLoad(
            name=self._name,
            models=sorted({f"{key.model_id}@{key.step}" for key in load.models}),
            num_chains=load.num_chains,
            num_waiting=load.num_waiting,
            backlog_s=load.backlog_s,
            num_evaluations=load.num_evaluations,
            num_row_evaluations=load.num_row_evaluations,
            told_at=time.time(),
        )
        self._redis.hset(LOADS, self._name, packed(told))
        self._told_at = time.monotonic()
        self._forget()

    def _forget(self) -> None:
        """Remove samplers that died long ago."""
        entries: Any = self._redis.hgetall(LOADS)
        for name, entry in entries.items():
            if time.time() - json.loads(entry)["told_at"] > _FORGET_S:
                self._redis.hdel(LOADS, name)

"""Which workers are alive: each keeps a key with a time to live, renewed by a thread that no task can hold up.

The same thread touches the file that tells whoever runs the container (heartbeat.py), whether Redis answers or not.
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import structlog
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from worker.heartbeat import beat

log = structlog.get_logger(__name__)

_PATTERN = "worker:*"


class Presence:
    """Announces one worker, which may serve several kinds ("train", "sample"), until `stop`."""

    def __init__(
        self, redis: Redis, kinds: list[str], name: str, *, every_s: float, heartbeat_file: Path | None = None
    ) -> None:
        self._redis = redis
        self._keys = [f"worker:{kind}:{name}" for kind in kinds]
        self._every_s = every_s
        self._heartbeat_file = heartbeat_file
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Announce now, and go on in a thread."""
        self._announce()
        self._thread.start()

    def stop(self) -> None:
        """Be gone at once."""
        self._stopped.set()
        self._thread.join(timeout=10)
        try:
            self._redis.delete(*self._keys)
        except RedisError as error:
            log.warning("presence_not_withdrawn", error=type(error).__name__)

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self._announce()

    def _announce(self) -> None:
        self._beat()
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for key in self._keys:
                pipeline.set(key, "", px=int(self._every_s * 3500))
            pipeline.execute()
        except RedisError as error:
            log.warning("presence_not_announced", error=type(error).__name__)

    def _beat(self) -> None:
        if self._heartbeat_file is None:
            return
        try:
            beat(self._heartbeat_file)
        except OSError as error:
            log.error("no_heartbeat", file=str(self._heartbeat_file), error=error.strerror)


def live_workers(redis: Redis) -> dict[str, int]:
    """Number of live workers by kind; a kind without any is absent."""
    return _by_kind(list(redis.scan_iter(match=_PATTERN, count=1000)))


async def live_workers_async(redis: AsyncRedis) -> dict[str, int]:
    """The same for asyncio."""
    return _by_kind([key async for key in redis.scan_iter(match=_PATTERN, count=1000)])


def _by_kind(keys: list[bytes]) -> dict[str, int]:
    return dict(Counter(key.decode().split(":")[1] for key in keys))

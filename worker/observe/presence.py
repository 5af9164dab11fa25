"""Which workers are alive, and what each says of itself.

Each keeps a key with a time to live, renewed by a thread that no task can hold up. The same thread touches the file
that tells whoever runs the container (heartbeat.py), whether Redis answers or not.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from worker.heartbeat import beat
from worker.observe.version import version
from worker.redis_keys import WORKER

log = structlog.get_logger(__name__)

_PATTERN = WORKER.of("*")
_GPU_TIMEOUT_S = 10


class WorkerReport(BaseModel):
    """What a worker tells of itself with every sign of life."""

    model_config = ConfigDict(frozen=True)

    version: str | None = None
    gpus: tuple[str, ...] = ()
    """names of the machine's NVIDIA devices, whether or not its torch can use them"""
    clock_ahead_s: float | None = None
    """of Redis's clock, which decides about leases"""


class Presence:
    """Announces one worker, which may serve several kinds ("train", "sample"), until `stop`."""

    def __init__(
        self, redis: Redis, kinds: list[str], name: str, *, every_s: float, heartbeat_file: Path | None = None
    ) -> None:
        self._redis = redis
        self._keys = [WORKER.of(kind, name) for kind in kinds]
        self._every_s = every_s
        self._heartbeat_file = heartbeat_file
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)
        self._version = version()
        self._gpus: tuple[str, ...] = ()

    def start(self) -> None:
        """Announce now, and go on in a thread."""
        self._announce()
        self._thread.start()

    def stop(self) -> None:
        """Withdraw the sign of life at once."""
        self._stopped.set()
        self._thread.join(timeout=10)
        try:
            self._redis.delete(*self._keys)
        except RedisError as error:
            log.warning("presence_not_withdrawn", error=type(error).__name__)

    def _run(self) -> None:
        self._gpus = _gpu_names()  # here, since asking may take seconds
        while not self._stopped.wait(self._every_s):
            self._announce()

    def _announce(self) -> None:
        self._beat()
        try:
            seconds, microseconds = self._redis.time()
            ahead_s = time.time() - seconds - microseconds / 1e6
            report = WorkerReport(version=self._version, gpus=self._gpus, clock_ahead_s=round(ahead_s, 2))
            pipeline = self._redis.pipeline(transaction=False)
            for key in self._keys:
                pipeline.set(key, report.model_dump_json(), px=int(self._every_s * 3500))
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
    """The number of live workers of each queue, for asyncio."""
    return _by_kind([key async for key in redis.scan_iter(match=_PATTERN, count=1000)])


def worker_reports(redis: Redis) -> list[tuple[str, str, WorkerReport]]:
    """(kind, name, what it says of itself) of every live worker, in order."""
    keys = sorted(redis.scan_iter(match=_PATTERN, count=1000))
    values = redis.mget(keys) if keys else []
    return [
        (*_kind_and_name(key), _report(value)) for key, value in zip(keys, values, strict=True) if value is not None
    ]


def _report(value: bytes | str) -> WorkerReport:
    """One of a worker too old to say anything is empty."""
    try:
        return WorkerReport.model_validate_json(value)
    except ValidationError:
        return WorkerReport()


def _kind_and_name(key: bytes) -> tuple[str, str]:
    _, kind, name = key.decode().split(":", 2)
    return kind, name


def _by_kind(keys: list[bytes]) -> dict[str, int]:
    return dict(Counter(_kind_and_name(key)[0] for key in keys))


def _gpu_names() -> tuple[str, ...]:
    """By the driver's own command: torch lives in the subprocesses of jobs only."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        line = [command, "--query-gpu=name", "--format=csv,noheader"]
        found = subprocess.run(line, capture_output=True, text=True, check=True, timeout=_GPU_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("gpus_not_listed", error=type(error).__name__)
        return ()
    return tuple(name.strip() for name in found.splitlines() if name.strip())

"""The trainers that work on one job together, its nodes: how the others find the one that holds the lease.

The holder of the lease, node 0, announces where the others meet it. There is one announcement at a time, so that two
jobs never hold the trainers that the other one waits for. A trainer without work takes a place of it: a key that nobody
else has, and that runs out like a lease unless its node renews it. The record stays with node 0 alone.
"""

from __future__ import annotations

import contextlib

from pydantic import BaseModel, ConfigDict, ValidationError
from redis import Redis

from worker.jobs.record import Lease
from worker.redis_keys import GATHERING, NODE
from worker.settings import Settings

LEAVING = b"leaving"
"""What a node says of itself when its trainer is shut down, in place of the trainer's name."""


class Gathering(BaseModel):
    """A job that waits for its nodes."""

    model_config = ConfigDict(frozen=True)

    lease: Lease
    """of node 0"""
    endpoint: str
    """HOST:PORT, where node 0 waits for the others"""
    num_nodes: int


class Nodes:
    """Announces a job to the trainers, and keeps their places. Every method raises RedisError while Redis is away."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._lease_ms = int(1000 * settings.lease_s)

    def is_gathering(self) -> bool:
        """Whether a job waits for its nodes."""
        return bool(self._redis.exists(GATHERING))

    def announce(self, gathering: Gathering) -> bool:
        """Say, or say again, where the nodes of a job meet; False if another job waits for its own."""
        text = gathering.model_dump_json()
        if self._redis.set(GATHERING, text, nx=True, px=self._lease_ms):
            return True
        if self._redis.get(GATHERING) != text.encode():
            return False
        return bool(self._redis.pexpire(GATHERING, self._lease_ms))

    def withdraw(self, gathering: Gathering) -> None:
        """Announce the job no longer: all have come, or none is waited for."""
        if self._redis.get(GATHERING) == gathering.model_dump_json().encode():
            self._redis.delete(GATHERING)

    def join(self, worker: str) -> tuple[Gathering, int] | None:
        """Take a place of the job that is announced: its number, from 1 on. None if there is no job, or no place."""
        text = self._redis.get(GATHERING)
        if text is None:
            return None
        with contextlib.suppress(ValidationError):  # another version of the program announced it
            gathering = Gathering.model_validate_json(text)
            for index in range(1, gathering.num_nodes):
                if self._redis.set(_key(gathering, index), worker, nx=True, px=self._lease_ms):
                    return gathering, index
        return None

    def renew(self, gathering: Gathering, index: int, said: str | bytes) -> None:
        """Keep the place of a node for another `lease_s`; it says its trainer's name, or LEAVING."""
        self._redis.set(_key(gathering, index), said, px=self._lease_ms)

    def leave(self, gathering: Gathering, index: int) -> None:
        """Give the place up."""
        self._redis.delete(_key(gathering, index))

    def said(self, gathering: Gathering) -> list[bytes | None]:
        """What the nodes 1, 2, … say of themselves; None for one that is not there."""
        found: list[bytes | None] = list(
            self._redis.mget([_key(gathering, index) for index in range(1, gathering.num_nodes)])  # type: ignore[arg-type]
        )
        return found


def _key(gathering: Gathering, index: int) -> str:
    return NODE.of(gathering.lease.job_id, str(gathering.lease.token), str(index))

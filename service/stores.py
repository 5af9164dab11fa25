"""The clients that routes work with, for job records, artefacts, the task queue and Redis; the lifespan makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from celery import Celery
from fastapi import Depends, Request
from redis.asyncio import Redis as AsyncRedis

from service.settings import ServiceSettings
from worker.connect import async_redis_client
from worker.jobs.records import RecordStore
from worker.queue.broker import make_app
from worker.storage.artifacts import Artifacts
from worker.storage.datasets import DatasetStore

_DECODING_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Stores:
    """The set of clients of a process, which send nothing until a route needs it."""

    settings: ServiceSettings
    records: RecordStore
    artifacts: Artifacts
    redis: AsyncRedis
    broker: Celery
    decoding: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_DECODING_THREADS))
    """The limit of uploads that are decoded at a time, in threads of their own, so that they hold up nothing else."""

    @property
    def datasets(self) -> DatasetStore:
        """The store of uploaded datasets."""
        return DatasetStore(self.artifacts)

    @classmethod
    def connect(cls, settings: ServiceSettings) -> Stores:
        """Make clients for the stores that the settings name."""
        records = RecordStore.connect(settings)
        return cls(
            settings=settings,
            records=records,
            artifacts=records.artifacts,
            redis=async_redis_client(settings),
            broker=make_app(settings),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self.redis.aclose()
        self.records.redis.close()
        self.broker.close()


def stores(request: Request) -> Stores:
    """Return the stores of the application that serves the request."""
    found: Stores = request.app.state.stores
    return found


StoresDependency = Annotated[Stores, Depends(stores)]

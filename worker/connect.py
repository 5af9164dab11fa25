"""Redis clients with explicit timeouts and few retries: a store that is away should be noticed in seconds."""

from __future__ import annotations

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from worker.settings import Settings

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 5.0
"""Longer than messages.MAX_BLOCK_S, the longest blocking call."""
MAX_CONNECTIONS = 4096
"""Every request that waits for its reply holds one; redis-py's own default is 100."""
RETRIES = 2
"""redis-py's own default of 10 makes one call to a dead server take a minute."""


def redis_client(settings: Settings) -> Redis:
    """A client that answers in bytes; it connects on first use and is safe to share among threads."""
    return Redis.from_url(
        settings.redis_url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=ANSWER_TIMEOUT_S,
        max_connections=MAX_CONNECTIONS,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
    )


def async_redis_client(settings: Settings) -> AsyncRedis:
    """A client of the same Redis for asyncio."""
    return AsyncRedis.from_url(
        settings.redis_url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=ANSWER_TIMEOUT_S,
        max_connections=MAX_CONNECTIONS,
        retry=AsyncRetry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
    )

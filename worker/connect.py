"""Redis clients with explicit timeouts and few retries: a store that is away should be noticed in seconds."""

from __future__ import annotations

import socket
import urllib.parse

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


def own_address(settings: Settings) -> str:
    """The address of this machine towards Redis, which is the one that other workers reach it at."""
    found = urllib.parse.urlsplit(settings.redis_url)
    if found.hostname is None:  # a socket of this machine
        return "127.0.0.1"
    family, kind, protocol, _, address = socket.getaddrinfo(found.hostname, found.port or 6379, type=socket.SOCK_DGRAM)[
        0
    ]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0])

"""One request to the samplers and its replies: queued, waited for, given up when its client leaves.

Refusals of the samplers are translated into problems here.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, Generic

import anyio
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from service.http.errors import Problem
from service.http.metrics import RequestMetrics, route_template
from service.stores import Stores
from worker.ids import new_id
from worker.observe.presence import live_workers
from worker.queue.backlog import shared_backlog
from worker.queue.broker import send_request
from worker.queue.loads import SamplerLoad, warm_queue
from worker.queue.messages import R, ReplyChannel, ReplyTimeout, SamplerReply, cancel_key, input_key
from worker.queue.tasks import Q, Task
from worker.redis_keys import SAMPLE_QUEUE

_STATUS_OF_ERROR = {
    "unknown_model": 404,
    "no_checkpoint": 409,
    "not_calibrated": 409,
    "bad_request": 422,
    "deadline_passed": 504,
    "storage_unavailable": 503,
    "busy": 429,
    "stopped": 503,
    "cancelled": 499,
    "internal": 500,
}
_RETRY_AFTER_S = 5.0
_LONGEST_RETRY_AFTER_S = 600.0
_CANCEL_TTL_S = 600
_INPUT_MARGIN_S = 10.0
"""An array outlives its request by so long."""

REPLY_HEADERS: dict[str, Any] = {
    "X-Model": {"description": "`id@step` of the checkpoint used", "schema": {"type": "string"}},
    "X-NFE": {"description": "Energy-gradient evaluations per sample or event", "schema": {"type": "integer"}},
    "Server-Timing": {"description": "queue, load, compute, encode", "schema": {"type": "string"}},
}
"""In OpenAPI, of what `reply_headers` adds."""


def require_sampler(stores: Stores) -> None:
    """Raises Problem 503 when no sampler would answer."""
    if SAMPLE_QUEUE not in live_workers(stores.records.redis):
        raise _no_sampler("no sampler gives signs of life; start one, GET /readyz shows what is missing", 503)


class Exchange(Generic[Q, R]):
    """One request under way. Whatever ends it early (`close` before the last reply) frees its chains."""

    def __init__(self, stores: Stores, task: Task[Q, R], request: Q, *, remedy: str) -> None:
        self._stores = stores
        self._task = task
        self._request = request
        self._remedy = remedy
        self._give_up_at = time.monotonic() + request.remaining_s
        self._is_open = False

    async def send(self) -> None:
        """Queue it, where the model is loaded if it can be. Raises Problem 429 when too many wait already."""
        loads = await self._require_room()
        queue = warm_queue(loads, self._request.model_id, self._request.step) or SAMPLE_QUEUE
        self._is_open = True
        await run_in_threadpool(send_request, self._stores.broker, self._request, queue)

    async def next_reply(self, connection: Request) -> R:
        """The next reply. Raises Problem: a refusal, no reply in time (with the `remedy`), or the client left."""
        channel = ReplyChannel(self._request.request_id)
        timeout_s = self._give_up_at - time.monotonic()
        waiting = asyncio.ensure_future(channel.wait(self._stores.redis, self._task.reply, timeout_s))
        leaving = asyncio.ensure_future(_left(connection))
        try:
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise Problem(499, "client-closed-request", "the client left before the answer")
            return self._checked(await waiting)
        except ReplyTimeout:
            limit_s = self._stores.settings.sample_timeout_s
            raise _no_sampler(
                f"no sampler answered within {limit_s:g} s; {self._remedy}, or add samplers", 504
            ) from None
        finally:
            for task in (waiting, leaving):
                task.cancel()

    async def close(self) -> None:
        """Tell the samplers that nobody waits any more, unless the last reply has come."""
        if self._is_open:
            self._is_open = False
            with anyio.CancelScope(shield=True):  # also when this task is being cancelled because the client left
                await self._stores.redis.set(cancel_key(self._request.request_id), "", ex=_CANCEL_TTL_S)

    def _checked(self, reply: R) -> R:
        self._is_open = not reply.is_last
        if reply.ok:
            return reply
        error = reply.error or "internal"
        status = _STATUS_OF_ERROR[error]
        headers = {}
        if status in (429, 503):
            headers["Retry-After"] = _retry_after(reply.retry_after_s or _RETRY_AFTER_S)
        detail = reply.detail or "the sampler gave no reason"
        raise Problem(status, error.replace("_", "-"), detail, headers=headers)

    async def _require_room(self) -> list[SamplerLoad]:
        """What the samplers say of themselves. Raises Problem 429."""
        length, loads = await shared_backlog(self._stores.redis)
        limit = self._stores.settings.max_queued_requests
        if length < limit:
            return loads
        raise Problem(
            429,
            "busy",
            f"{length} requests wait for a sampler, and no more than {limit} may; try again later or add samplers",
            headers={"Retry-After": _retry_after(min((load.backlog_s for load in loads), default=_RETRY_AFTER_S))},
        )


def addressed(stores: Stores, model_id: str, step: int) -> dict[str, Any]:
    """Return the fields that every request has: an id of its own, the checkpoint, and how long its client waits."""
    deadline = time.time() + stores.settings.sample_timeout_s
    return {"request_id": new_id(), "model_id": model_id, "step": step, "deadline": deadline}


async def ask(
    stores: Stores, connection: Request, task: Task[Q, R], request: Q, *, remedy: str, array: bytes | None = None
) -> R:
    """Queue the request, with an .npy `array` beside it, and wait for its one reply. Raises Problem as Exchange."""
    exchange = Exchange(stores, task, request, remedy=remedy)
    key = input_key(request.request_id)
    try:
        if array is not None:
            await stores.redis.set(key, array, px=int(1000 * (request.remaining_s + _INPUT_MARGIN_S)))
        await exchange.send()
        return await exchange.next_reply(connection)
    finally:
        await exchange.close()
        if array is not None:
            await stores.redis.unlink(key)


async def _left(connection: Request) -> None:
    """Returns when the client closes the connection; the request's body has been read."""
    while (await connection.receive())["type"] != "http.disconnect":
        pass


def model_at(reply: SamplerReply) -> str:
    """`id@step` of the checkpoint that was used."""
    return f"{reply.model_id}@{reply.step}"


def reply_headers(reply: SamplerReply, encoding_began_at: float, connection: Request) -> dict[str, str]:
    """Which model answered, at what cost and where the time went; `encoding_began_at` is a `time.perf_counter()`.

    How long the encoding took is also counted.
    """
    timings = reply.timings
    encode_s = time.perf_counter() - encoding_began_at
    metrics: RequestMetrics = connection.app.state.metrics
    metrics.observe_encoding(route_template(connection.scope), encode_s)
    durations_s = {
        "queue": timings.queue_s,
        "load": timings.load_s,
        "compute": timings.compute_s,
        "encode": encode_s,
    }
    return {
        "X-Model": model_at(reply),
        "X-NFE": str(reply.gradient_evaluations),
        "Server-Timing": ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in durations_s.items()),
    }


def _no_sampler(detail: str, status: int) -> Problem:
    return Problem(status, "no-sampler", detail, headers={"Retry-After": _retry_after(_RETRY_AFTER_S)})


def _retry_after(seconds: float) -> str:
    return str(math.ceil(min(max(seconds, 1.0), _LONGEST_RETRY_AFTER_S)))

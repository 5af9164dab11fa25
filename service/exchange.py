"""One request to the samplers and its reply: queued, waited for, and refusals translated into problems."""

from __future__ import annotations

import time
from typing import Any

from starlette.concurrency import run_in_threadpool

from service.errors import Problem
from service.stores import Stores
from worker.broker import send_request
from worker.messages import SAMPLE_QUEUE, R, ReplyChannel, ReplyTimeout, SamplerReply, SamplerRequest
from worker.presence import live_workers

_STATUS_OF_ERROR = {
    "unknown_model": 404,
    "no_checkpoint": 409,
    "not_calibrated": 409,
    "bad_request": 422,
    "deadline_passed": 504,
    "storage_unavailable": 503,
    "internal": 500,
}
_RETRY_AFTER_S = "5"

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


async def ask(stores: Stores, request: SamplerRequest, kind: type[R], remedy: str) -> R:
    """Queue the request and wait. Raises Problem when no reply comes in time (with the `remedy`), or a refusal."""
    timeout_s = stores.settings.sample_timeout_s
    await run_in_threadpool(send_request, stores.broker, request)
    try:
        reply = await ReplyChannel(request.request_id).wait(stores.redis, kind, timeout_s)
    except ReplyTimeout:
        raise _no_sampler(f"no sampler answered within {timeout_s:g} s; {remedy}, or add samplers", 504) from None
    if not reply.ok:
        error = reply.error or "internal"
        raise Problem(_STATUS_OF_ERROR[error], error.replace("_", "-"), reply.detail or "the sampler gave no reason")
    return reply


def model_at(reply: SamplerReply) -> str:
    """`id@step` of the checkpoint that was used."""
    return f"{reply.model_id}@{reply.step}"


def reply_headers(reply: SamplerReply, encoding_began_at: float) -> dict[str, str]:
    """Which model answered, at what cost and where the time went; `encoding_began_at` is a `time.perf_counter()`."""
    timings = reply.timings
    durations_s = {
        "queue": timings.queue_s,
        "load": timings.load_s,
        "compute": timings.compute_s,
        "encode": time.perf_counter() - encoding_began_at,
    }
    return {
        "X-Model": model_at(reply),
        "X-NFE": str(reply.gradient_evaluations),
        "Server-Timing": ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in durations_s.items()),
    }


def _no_sampler(detail: str, status: int) -> Problem:
    return Problem(status, "no-sampler", detail, headers={"Retry-After": _RETRY_AFTER_S})

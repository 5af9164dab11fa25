from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydantic import ValidationError

from worker.connect import async_redis_client
from worker.ids import new_id
from worker.jobs.records import RecordStore
from worker.queue.messages import DoubleArray, FloatArray, ReplyChannel, ReplyTimeout
from worker.queue.tasks import TASKS, DensityMapReply, DensityMapRequest, DensityReply, SampleReply, SampleRequest
from worker.sampler.sampler import answer_of
from worker.settings import Settings

FLOATS = arrays(np.float32, array_shapes(min_dims=1, max_dims=4, max_side=4))


def _request(**changes: object) -> SampleRequest:
    values = {"request_id": new_id(), "model_id": new_id(), "num_images": 4, "seed": 7, "deadline": time.time() + 9}
    return SampleRequest.model_validate(values | changes)


@given(x=FLOATS, levels=st.dictionaries(st.integers(0, 999), FLOATS, max_size=3))
def test_a_reply_comes_back_as_it_was_sent(x: FloatArray, levels: dict[int, FloatArray]) -> None:
    sent = SampleReply(request_id=new_id(), ok=True, model_id=new_id(), step=5, seed=1, x=x, levels=levels)
    back = SampleReply.decode(sent.encode())
    assert back.x is not None
    np.testing.assert_array_equal(back.x, x)
    assert back.x.dtype == np.float32
    assert list(back.levels) == list(levels)
    for level, array in levels.items():
        np.testing.assert_array_equal(back.levels[level], array)
    assert back.model_dump() == sent.model_dump()


@given(values=arrays(np.float64, st.integers(1, 5)), num_paths=st.integers(0, 1))
def test_densities_come_back_in_full_precision(values: DoubleArray, num_paths: int) -> None:
    spread = values / 3 if num_paths else None
    sent = DensityReply(
        request_id=new_id(), ok=True, model_id=new_id(), seed=1, log_density=values, energy=-values, path_spread=spread
    )
    back = DensityReply.decode(sent.encode())
    assert (back.log_density is not None, back.energy is not None) == (True, True)
    np.testing.assert_array_equal(back.log_density, values)
    np.testing.assert_array_equal(back.energy, -values)
    assert back.bits_per_dim is None
    assert (back.path_spread is None) == (spread is None)


def test_a_picture_comes_back_as_it_was_sent() -> None:
    sent = DensityMapReply(request_id=new_id(), ok=True, model_id=new_id(), png=b"\x89PNG\r\n\0")
    assert DensityMapReply.decode(sent.encode()) == sent


def test_a_failure_of_any_kind_says_to_which_request_it_belongs() -> None:
    request = DensityMapRequest(request_id=new_id(), model_id=new_id(), step=3, deadline=time.time())
    failed = DensityMapReply.decode(DensityMapReply.failed(request, "not_calibrated", "POST it").encode())
    assert (failed.request_id, failed.model_id, failed.step) == (request.request_id, request.model_id, 3)
    assert (failed.ok, failed.error, failed.detail) == (False, "not_calibrated", "POST it")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_images": 0},
        {"seed": -1},
        {"model_id": "../x"},
        {"noise_scale": float("nan")},
        {"num_steps": 10**9},
        {"pickle": "x"},
    ],
)
def test_a_request_out_of_range_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        _request(**changes)


def test_a_request_survives_the_queue() -> None:
    request = _request(levels=(0, 3), noise_scale=0.99)
    assert SampleRequest.model_validate_json(request.model_dump_json()) == request


def test_a_waiting_client_gets_the_reply_and_the_channel_does_not_stay(store: RecordStore, settings: Settings) -> None:
    request = _request()
    channel = ReplyChannel(request.request_id, ttl_s=30)

    async def exchange() -> SampleReply:
        redis = async_redis_client(settings)
        waiting = asyncio.create_task(channel.wait(redis, SampleReply, 5))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(channel.push, store.redis, SampleReply.failed(request, "no_checkpoint", "not yet"))
        reply = await waiting
        await redis.aclose()
        return reply

    reply = asyncio.run(exchange())
    assert (reply.ok, reply.error, reply.detail, reply.seed) == (False, "no_checkpoint", "not yet", 7)
    assert not store.redis.exists(channel.key)


def test_a_reply_nobody_fetches_expires(store: RecordStore) -> None:
    request = _request()
    channel = ReplyChannel(request.request_id, ttl_s=30)
    channel.push(store.redis, SampleReply.failed(request, "internal", "x"))
    assert 0 < store.redis.ttl(channel.key) <= 30


def test_a_client_without_a_reply_is_told_after_its_time(settings: Settings) -> None:
    async def wait() -> None:
        redis = async_redis_client(settings)
        try:
            await ReplyChannel(new_id()).wait(redis, SampleReply, 0.2)
        finally:
            await redis.aclose()

    started_at = time.monotonic()
    with pytest.raises(ReplyTimeout):
        asyncio.run(wait())
    assert time.monotonic() - started_at < 3


def test_requests_have_the_form_in_which_versions_that_run_side_by_side_exchange_them() -> None:
    shared = {"request_id", "model_id", "step", "sent_at", "deadline"}
    fields = {task.name: set(task.request.model_fields) - shared for task in TASKS}
    assert fields == {
        "worker.tasks.sample": {
            *("num_images", "seed", "num_steps", "noise_scale", "labels", "adjusted", "levels", "precision", "stream"),
            "start",
        },
        "worker.tasks.classify": {"noise_std"},
        "worker.tasks.density": {"num_paths", "seed"},
        "worker.tasks.density_map": set(),
    }
    assert _request(steps=3).model_dump()["num_steps"] == 3
    sent = _request().model_dump(mode="json", exclude_defaults=True)
    assert set(sent) == {"request_id", "model_id", "sent_at", "deadline", "num_images", "seed"}


def test_every_task_has_a_module_that_answers_it() -> None:
    for task in TASKS:
        assert callable(answer_of(task))

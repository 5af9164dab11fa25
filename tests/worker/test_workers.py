"""Real Celery workers, killed for real."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import psutil

from tests.servers import PATIENCE_S, wait_until
from tests.stored import STEP, store_untrained
from tests.worker.conftest import SAMPLER, TRAINER, StartWorker, tiny_config, tiny_spec
from worker import redis_keys
from worker.connect import async_redis_client
from worker.ids import new_id
from worker.jobs.deletion import Deletions
from worker.jobs.kinds import JobKind
from worker.jobs.record import JobRecord, JobStatus
from worker.jobs.records import RecordStore
from worker.observe.presence import live_workers
from worker.queue.broker import make_app, send_request, wake
from worker.queue.loads import fresh_loads, own_queue
from worker.queue.messages import ReplyChannel, cancel_key
from worker.queue.tasks import SampleReply, SampleRequest
from worker.redis_keys import LOADS, TRAIN_QUEUE
from worker.settings import Settings
from worker.storage.artifacts import Artifacts


def _submit(store: RecordStore, **changes: Any) -> JobRecord:
    record = store.create(JobKind.train, tiny_spec(**changes))
    with make_app(store.settings) as app:
        wake(app, record.kind, record.id)
    return record


def _end(store: RecordStore, record: JobRecord, timeout_s: float = PATIENCE_S) -> JobRecord:
    wait_until(
        lambda: store.get(record.id).status.is_terminal, f"the end of {store.get(record.id)}", timeout_s=timeout_s
    )
    return store.get(record.id)


def _reach(store: RecordStore, record: JobRecord, step: int) -> None:
    wait_until(lambda: (store.get(record.id).last_checkpoint or 0) >= step, f"checkpoint {step}")


def _weights(s3: Artifacts, record: JobRecord, step: int) -> dict[str, str]:
    assert record.model_id is not None
    return {name: entry["sha256"] for name, entry in s3.get_manifest(record.model_id, step)["files"].items()}


def _ask(settings: Settings, **changes: Any) -> SampleReply:
    values = {"request_id": new_id(), "num_images": 3, "seed": 5, "deadline": time.time() + PATIENCE_S}
    request = SampleRequest.model_validate(values | changes)

    async def exchange() -> SampleReply:
        redis = async_redis_client(settings)
        try:
            return await ReplyChannel(request.request_id).wait(redis, SampleReply, PATIENCE_S + 10)
        finally:
            await redis.aclose()

    with make_app(settings) as app:
        send_request(app, request)
    return asyncio.run(exchange())


def test_a_model_is_trained_by_one_worker_and_sampled_by_another(
    store: RecordStore, start_worker: StartWorker, settings: Settings
) -> None:
    trainer, sampler = start_worker("trainer", TRAINER), start_worker("sampler", SAMPLER)
    record = _submit(store)
    unknown = _ask(settings, model_id=new_id())
    assert (unknown.error, unknown.ok) == ("unknown_model", False)
    assert _end(store, record).status is JobStatus.succeeded
    reply = _ask(settings, model_id=record.model_id, levels=(1,))
    assert (reply.ok, reply.step, reply.seed) == (True, 60, 5)
    assert reply.x is not None
    assert reply.x.shape == (3, 2)
    assert np.isfinite(reply.x).all()
    assert reply.levels[1].shape == (3, 2)
    assert reply.gradient_evaluations > 0
    assert reply.timings.compute_s > 0
    one = _ask(settings, model_id=record.model_id, num_images=1)
    assert one.x is not None
    np.testing.assert_allclose(one.x[0], reply.x[0], rtol=1e-4, atol=1e-5)
    assert one.timings.load_s < reply.timings.load_s
    absent = _ask(settings, model_id=record.model_id, step=59)
    assert (absent.error, absent.detail) == (
        "no_checkpoint",
        f"model {record.model_id} has no checkpoint 59; it has 20, 40, 60",
    )
    assert _ask(settings, model_id=record.model_id, levels=(999,)).error == "bad_request"
    assert _ask(settings, model_id=record.model_id, deadline=time.time() - 1).error == "deadline_passed"
    assert (trainer.stop(), sampler.stop()) == (0, 0)


def test_a_job_whose_whole_worker_is_killed_goes_on_elsewhere_to_the_same_weights_and_leaves_no_orphan(
    store: RecordStore, s3: Artifacts, start_worker: StartWorker
) -> None:
    first, second = start_worker("first", TRAINER), start_worker("second", TRAINER)
    steps = {"steps": 1000, "checkpoint_every": 100, "log_every": 50}
    record = _submit(store, **steps)
    _reach(store, record, 100)
    holder = store.get(record.id).worker
    killed = first if holder == "first@test" else second
    family = killed.family()
    assert any("worker.trainer.attempt" in process.cmdline() for process in family)
    killed.kill_main()
    killed_at = time.monotonic()
    wait_until(lambda: store.get(record.id).worker != holder, "another worker")
    assert time.monotonic() - killed_at < 3 * store.settings.lease_s
    ended = _end(store, record)
    assert (ended.status, ended.attempt) == (JobStatus.succeeded, 2)
    assert ended.worker != holder
    psutil.wait_procs(family, timeout=PATIENCE_S)
    assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    started = [event.data["step"] for event in store.read_events(record.id, limit=10_000) if event.type == "started"]
    assert started[0] == 0
    assert started[1] >= 100
    undisturbed = _submit(store, **steps)
    assert _end(store, undisturbed).status is JobStatus.succeeded
    assert _weights(s3, ended, 1000) == _weights(s3, undisturbed, 1000)


def test_a_worker_that_was_frozen_past_its_lease_wakes_up_to_stop_and_commits_nothing(
    store: RecordStore, s3: Artifacts, start_worker: StartWorker
) -> None:
    workers = {f"{name}@test": start_worker(name, TRAINER) for name in ("first", "second")}
    record = _submit(store, steps=1000, checkpoint_every=100, log_every=50)
    _reach(store, record, 100)
    holder = store.get(record.id).worker
    assert holder is not None
    frozen = workers[holder].family()
    (training,) = (process for process in frozen if "worker.trainer.attempt" in process.cmdline())
    for process in frozen:
        process.suspend()
    try:
        wait_until(lambda: store.get(record.id).worker != holder, "another worker")
        reached = store.get(record.id).last_checkpoint or 0
        _reach(store, record, reached + 100)
    finally:
        for process in frozen:
            process.resume()
    assert psutil.wait_procs([training], timeout=PATIENCE_S)[1] == []
    ended = _end(store, record)
    assert (ended.status, ended.attempt) == (JobStatus.succeeded, 2)
    assert ended.worker != holder
    assert record.model_id is not None
    manifests = [s3.get_manifest(record.model_id, found.step) for found in s3.list_checkpoints(record.model_id)]
    by_time = sorted(manifests, key=lambda manifest: manifest["created_at"])
    tokens = [manifest["lease"] for manifest in by_time]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == 2
    assert [manifest["step"] for manifest in by_time] == sorted(manifest["step"] for manifest in manifests)


def test_sigterm_puts_the_job_back_with_a_checkpoint_and_the_next_worker_finishes_it(
    store: RecordStore, start_worker: StartWorker
) -> None:
    worker = start_worker("first", TRAINER)
    record = _submit(store, steps=1000, checkpoint_every=100)
    _reach(store, record, 100)
    assert worker.stop(15) == 0
    queued = store.get(record.id)
    assert (queued.status, queued.attempt) == (JobStatus.queued, 1)
    assert store.redis.llen(TRAIN_QUEUE) == 1
    start_worker("second", TRAINER)
    ended = _end(store, record)
    assert (ended.status, ended.attempt) == (JobStatus.succeeded, 1)


def test_a_wiped_redis_costs_a_running_job_nothing_and_a_waiting_one_only_time(
    store: RecordStore, start_worker: StartWorker
) -> None:
    start_worker("only", TRAINER)
    running = _submit(store, steps=1000, checkpoint_every=100)
    waiting = _submit(store)
    _reach(store, running, 100)
    store.redis.flushall()
    ended = _end_after_restore(store, running)
    assert (ended.status, ended.attempt) == (JobStatus.succeeded, 1)
    assert _end(store, waiting).status is JobStatus.succeeded


def _end_after_restore(store: RecordStore, record: JobRecord) -> JobRecord:
    wait_until(lambda: store.redis.exists(f"job:{record.id}"), "the restore")
    return _end(store, record)


def test_a_client_that_leaves_frees_the_samplers_chains(
    store: RecordStore, s3: Artifacts, start_worker: StartWorker, settings: Settings
) -> None:
    model_id = store_untrained(s3, tiny_config())
    start_worker("sampler", SAMPLER)
    request = SampleRequest(
        request_id=new_id(),
        model_id=model_id,
        num_images=50,
        seed=0,
        num_steps=10_000,
        deadline=time.time() + 300,
    )

    def chains() -> int:
        entries: Any = store.redis.hgetall(LOADS)
        return sum(load.num_chains for load in fresh_loads(entries))

    with make_app(settings) as app:
        send_request(app, request)
    wait_until(lambda: chains() > 0, "chains that run")
    store.redis.set(cancel_key(request.request_id), "", ex=60)
    wait_until(lambda: chains() == 0, "freed chains")
    assert not store.redis.exists(ReplyChannel(request.request_id).key)
    assert _ask(settings, model_id=model_id).ok


def test_a_request_in_a_samplers_own_queue_is_answered(
    store: RecordStore, start_worker: StartWorker, settings: Settings
) -> None:
    start_worker("sampler", SAMPLER)
    request = SampleRequest(
        request_id=new_id(), model_id=new_id(), num_images=1, seed=0, deadline=time.time() + PATIENCE_S
    )
    with make_app(settings) as app:
        send_request(app, request, own_queue("sampler@test"))
    wait_until(lambda: store.redis.exists(ReplyChannel(request.request_id).key), "a reply")
    assert live_workers(store.redis) == {"sample": 1}


def test_a_deleted_model_leaves_the_samplers_memory(
    store: RecordStore, s3: Artifacts, start_worker: StartWorker, settings: Settings
) -> None:
    store.restore_from_s3()
    model_id, other = store_untrained(s3, tiny_config()), store_untrained(s3, tiny_config())
    start_worker("sampler", SAMPLER)
    assert _ask(settings, model_id=model_id, step=STEP).ok
    assert _ask(settings, model_id=other).ok

    def loaded() -> set[str]:
        entries: Any = store.redis.hgetall(redis_keys.LOADS)
        return {model for load in fresh_loads(entries) for model in load.models}

    wait_until(lambda: len(loaded()) == 2, "both models in memory")
    Deletions(store).delete_model(model_id)
    wait_until(lambda: loaded() == {f"{other}@{STEP}"}, "the end of the deleted one")
    assert _ask(settings, model_id=model_id, step=STEP).error == "unknown_model"
    assert _ask(settings, model_id=other).ok

"""Every kind of job in one list: what is stored can be read, and what another version stored does no harm."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from celery import Celery

from model.config import to_dict
from model.errors import ConfigError
from tests.worker.conftest import calibration_spec, make_job, tiny_config, tiny_spec
from worker.jobs.event import EVENTS, NoticeEvent, StartedEvent, StatusEvent, data_of, type_of
from worker.jobs.kinds import KINDS, CalibrateSpec, JobKind, Kind, SampleSpec, TrainSpec, kind_of
from worker.jobs.reaper import Reaper
from worker.jobs.record import JobStatus
from worker.jobs.records import RecordStore
from worker.queue.broker import make_app, wake
from worker.redis_keys import TRAIN_QUEUE
from worker.settings import Settings
from worker.tasks import register_tasks
from worker.trainer.attempt import Attempt

LATER = "distill"
"""A kind that only a later version knows."""


def test_every_kind_is_listed_once() -> None:
    assert [kind.name for kind in KINDS] == [kind_of(kind.name).name for kind in KINDS]  # type: ignore[union-attr]
    assert sorted(kind.name for kind in KINDS) == sorted(JobKind)
    assert kind_of(LATER) is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_work_of_a_kind_is_in_its_module_and_its_events_have_names(kind: Kind) -> None:
    assert issubclass(importlib.import_module(kind.module).Run, Attempt)
    assert set(kind.events) <= set(EVENTS.values())


def test_a_spec_is_read_as_it_was_stored() -> None:
    training = TrainSpec(config=tiny_config(), device="cpu")
    assert TrainSpec.of(training.model_dump(mode="json")) == training
    assert training.model_dump() == {
        **tiny_spec(),
        "plan": None,
        "num_gpus": 1,
        "num_nodes": 1,
        "keep_last": None,
        "keep_every": None,
    }
    calibration = CalibrateSpec.of(calibration_spec(40, num_chains=32))
    assert (calibration.step, calibration.config.num_chains) == (40, 32)


def test_specs_of_an_earlier_and_of_a_later_version_are_read() -> None:
    earlier = {"config": {"dataset": "digits"}}
    assert TrainSpec.of(earlier).num_gpus == 1
    defaults = {
        "device": "auto",
        "plan": None,
        "num_gpus": 1,
        "num_nodes": 1,
        "keep_last": None,
        "keep_every": None,
    }
    assert TrainSpec.completed(earlier) == {**defaults, **earlier}
    assert TrainSpec.of({**tiny_spec(), "curriculum": "easy first"}) == TrainSpec.of(tiny_spec())


@pytest.mark.parametrize(
    ("change", "told"),
    [({"config": {"steps": -1}}, "config: .*steps is -1"), ({"num_gpus": "many"}, "num_gpus: Input should be")],
)
def test_a_spec_that_makes_no_sense_is_one_sentence(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"is no TrainSpec: {told}.*; start the job again"):
        TrainSpec.of({"config": to_dict(tiny_config()), **change})


def test_the_files_of_a_bulk_sampling_hold_all_its_samples() -> None:
    spec = SampleSpec(step=1, num_images=250, shard_images=100, seed=0, num_steps=None, noise_scale=None)
    assert [spec.count(index) for index in range(spec.num_shards)] == [100, 100, 50]


def test_a_job_of_a_later_version_is_listed_and_left_alone(store: RecordStore, settings: Settings) -> None:
    job = store.create(LATER, {"teacher": "x"})
    ours, _ = make_job(store, JobStatus.queued)

    assert [record.kind for record in store.list().records] == ["train", LATER]
    assert store.get(job.id).spec == {"teacher": "x"}
    assert store.queue_position(job) is None
    assert store.queue_position(ours) == 1
    assert store.waiting_ids(TRAIN_QUEUE) == [ours.id]
    with make_app(settings) as app:
        wake(app, LATER, job.id)
        assert store.redis.llen(TRAIN_QUEUE) == 0
        lease = store.acquire_lease(job.id, "a later worker")
        store.redis.delete(f"lease:{job.id}")
        Reaper(store, name="test", queues=[TRAIN_QUEUE], wake_fn=lambda *of: wake(app, *of))._requeue_lost()
    assert lease is not None
    assert store.get(job.id).status is JobStatus.queued
    assert store.redis.llen(TRAIN_QUEUE) == 0


def test_messages_of_an_earlier_version_of_the_service_are_taken() -> None:
    app = Celery(set_as_current=False)
    register_tasks(app)
    assert {f"worker.tasks.{name}" for name in ("train", "calibrate", "bulk")} <= set(app.tasks)


def test_an_event_says_what_it_was_given_and_leaves_out_what_it_was_not() -> None:
    assert (type_of(NoticeEvent(text="hot")), data_of(NoticeEvent(text="hot"))) == ("notice", {"text": "hot"})
    assert data_of(StartedEvent(step=0, attempt=1, device="cpu")) == {"step": 0, "attempt": 1, "device": "cpu"}
    assert data_of(StatusEvent(status="queued", attempt=1, error=None)) == {
        "status": "queued",
        "attempt": 1,
        "error": None,
    }


def test_events_of_another_version_are_read_as_they_are(store: RecordStore) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    store.append_event(record.id, "epoch", {"number": 3}, lease.token)
    store.events.archive(record.id)
    store.redis.delete(f"events:{record.id}")
    last = store.read_events(record.id)[-1]
    assert (last.type, last.data) == ("epoch", {"number": 3})

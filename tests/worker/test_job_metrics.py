"""Series of running jobs: what they show, and when they end."""

from __future__ import annotations

import threading
import time
from typing import Any

from prometheus_client import CollectorRegistry

from tests.servers import PATIENCE_S, free_ports, wait_until
from tests.worker.conftest import make_job
from worker.jobs.record import JobStatus, Lease, Progress
from worker.jobs.records import RecordStore
from worker.observe.probe import Probe
from worker.trainer.metrics import JobCollector

WORKER = "first@worker"  # that of make_job


def scraped(store: RecordStore, worker: str = WORKER) -> CollectorRegistry:
    """A worker's series, read as at a scrape."""
    registry = CollectorRegistry()
    registry.register(JobCollector(store, worker))
    return registry


def step(**changes: Any) -> dict[str, Any]:
    """The data of a step event with two levels."""
    return {
        "phase": "recovery",
        "learning_rate": 1e-3,
        "gradient_norm": 2.5,
        "positive_energy": [1.0, None],
        "negative_energy": [1.5, None],
        "displacement": [0.25, None],
        "acceptance_rate": [0.75, None],
        **changes,
    }


def running(store: RecordStore) -> tuple[str, Lease]:
    """A job that WORKER runs."""
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    return record.id, lease


def test_a_running_job_shows_its_progress_its_levels_and_its_checkpoints(store: RecordStore) -> None:
    job_id, lease = running(store)
    store.report_progress(lease, Progress(step=30, total_steps=60, steps_per_second=2.5), last_loss=0.5)
    committed = {"step": 20, "write_s": 0.1, "upload_s": 0.4, "size_bytes": 1000}
    for type_, data in (("step", step()), ("checkpoint", committed), ("rollback", {"step": 25})):
        store.append_event(job_id, type_, data, lease.token)
    registry, job = scraped(store), {"job_id": job_id}
    expected = {
        "recovery_job_step": 30,
        "recovery_job_total_steps": 60,
        "recovery_job_steps_per_second": 2.5,
        "recovery_job_loss": 0.5,
        "recovery_job_attempt": 1,
        "recovery_job_gradient_norm": 2.5,
        "recovery_job_rollbacks_total": 1,
        "recovery_job_checkpoints_total": 1,
        "recovery_job_last_checkpoint_step": 20,
        "recovery_job_checkpoint_upload_seconds": 0.4,
        "recovery_job_checkpoint_size_bytes": 1000,
    }
    assert {name: registry.get_sample_value(name, job) for name in expected} == expected
    level = job | {"level": "0"}
    assert registry.get_sample_value("recovery_job_positive_energy_nats", level) == 1.0
    assert registry.get_sample_value("recovery_job_negative_energy_nats", level) == 1.5
    assert registry.get_sample_value("recovery_job_acceptance_ratio", level) == 0.75
    assert registry.get_sample_value("recovery_job_acceptance_ratio", job | {"level": "1"}) is None
    for name in ("started", "last_event", "last_checkpoint", "last_rollback"):
        at = registry.get_sample_value(f"recovery_job_{name}_timestamp_seconds", job)
        assert at is not None
        assert abs(time.time() - at) < 30


def test_a_scrape_takes_in_what_was_said_since_the_last_one(store: RecordStore) -> None:
    job_id, lease = running(store)
    registry, job = scraped(store), {"job_id": job_id}
    for number in (1, 2):
        store.append_event(job_id, "checkpoint", {"step": 10 * number}, lease.token)
        store.append_event(job_id, "step", step(gradient_norm=number), lease.token)
        assert registry.get_sample_value("recovery_job_checkpoints_total", job) == number
        assert registry.get_sample_value("recovery_job_gradient_norm", job) == number


def test_a_new_attempt_shows_nothing_of_the_steps_of_the_one_before_but_its_checkpoints(store: RecordStore) -> None:
    job_id, lease = running(store)
    store.append_event(job_id, "step", step(), lease.token)
    store.append_event(job_id, "checkpoint", {"step": 20}, lease.token)
    store.lose_attempt(lease, "its process was killed")
    assert store.acquire_lease(job_id, "other@worker") is not None
    registry, job = scraped(store, "other@worker"), {"job_id": job_id}
    assert registry.get_sample_value("recovery_job_gradient_norm", job) is None
    assert registry.get_sample_value("recovery_job_last_checkpoint_step", job) == 20
    assert registry.get_sample_value("recovery_job_attempt", job) == 2


def test_a_job_is_shown_by_the_worker_that_runs_it_alone_and_only_while_it_does(store: RecordStore) -> None:
    job_id, lease = running(store)
    mine, other, job = scraped(store), scraped(store, "other@worker"), {"job_id": job_id}
    assert mine.get_sample_value("recovery_job_attempt", job) == 1
    assert other.get_sample_value("recovery_job_attempt", job) is None
    store.succeed(lease)
    assert [family.name for family in mine.collect() if family.samples] == []


def test_a_job_whose_worker_is_silent_is_not_shown_even_before_it_is_reaped(store: RecordStore) -> None:
    job_id, _ = running(store)
    registry = scraped(store)
    store.redis.delete(f"lease:{job_id}")  # as it runs out
    assert registry.get_sample_value("recovery_job_attempt", {"job_id": job_id}) is None
    assert store.get(job_id).status is JobStatus.running


def test_without_redis_a_scrape_ends_in_time_and_without_jobs(store: RecordStore) -> None:
    away = RecordStore.connect(
        store.settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_ports(1)[0]}/0"})
    )
    began_at = time.monotonic()
    assert list(scraped(away).collect()) == []
    assert time.monotonic() - began_at < 8


def test_a_probe_waits_for_a_slow_answer_only_so_long_and_asks_once_meanwhile() -> None:
    asked, gate = list[int](), threading.Event()

    def slow() -> int:
        asked.append(len(asked) + 1)
        gate.wait(PATIENCE_S)
        return asked[-1]

    def answer() -> int | None:
        try:
            return probe.ask(timeout_s=0.2)
        except TimeoutError:
            return None

    probe = Probe(slow)
    assert [answer(), answer()] == [None, None]
    assert asked == [1]
    gate.set()
    assert wait_until(answer, "the answer") in (1, 2)

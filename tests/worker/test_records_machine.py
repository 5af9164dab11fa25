"""Any sequence of calls on a record does what was asked or raises the one named error."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from worker.ids import new_id
from worker.jobs.deletion import Deletions
from worker.jobs.kinds import JobKind
from worker.jobs.record import IllegalTransition, JobNotFound, JobStatus, Lease, Progress, StaleLease
from worker.jobs.records import RecordStore
from worker.redis_keys import TRAIN_QUEUE
from worker.storage.artifacts import job_prefix

ENDINGS = {
    "succeed": JobStatus.succeeded,
    "fail": JobStatus.failed,
    "cancel": JobStatus.cancelled,
    "requeue": JobStatus.queued,  # unless it was to be cancelled
}


class Records(RuleBasedStateMachine):
    """One store against a dictionary that says what must be true."""

    store: RecordStore

    def __init__(self) -> None:
        super().__init__()
        self.store.redis.flushall()
        self.store.artifacts.delete_all([key for key, _, _ in self.store.artifacts.list_keys("")])
        self.deletions = Deletions(self.store)
        self.deleted: set[str] = set()
        self.expected: dict[str, JobStatus] = {}
        self.attempts: dict[str, int] = {}
        self.holders: dict[str, Lease] = {}
        self.flagged: set[str] = set()
        self.places: dict[str, int] = {}
        """In the queue: given with the job, and anew when it is resumed"""
        self.specs: dict[str, dict[str, Any]] = {}
        self.checkpoints: dict[str, int] = {}
        self.clock = itertools.count()

    jobs: Bundle[str] = Bundle("jobs")
    leases: Bundle[Lease] = Bundle("leases")

    def _is_held(self, lease: Lease) -> bool:
        return self.holders.get(lease.job_id) == lease

    def _leave_running(self, job_id: str, status: JobStatus) -> None:
        self.expected[job_id] = status
        self.holders.pop(job_id, None)
        if not status.is_terminal:
            self.flagged.discard(job_id)

    def _lose(self, job_id: str) -> None:
        limit = self.store.settings.attempt_limit
        if job_id in self.flagged:
            self._leave_running(job_id, JobStatus.cancelled)
        elif self.attempts[job_id] >= limit:
            self._leave_running(job_id, JobStatus.failed)
        else:
            self.attempts[job_id] += 1
            self._leave_running(job_id, JobStatus.queued)

    @rule(target=jobs, job_id=st.none() | st.builds(new_id))
    def create(self, job_id: str | None) -> str:
        spec = {"steps": next(self.clock)}
        record = self.store.create(JobKind.train, spec, job_id=job_id)
        assert record.id == (job_id or record.id)
        self.expected[record.id] = JobStatus.queued
        self.attempts[record.id] = 1
        self.places[record.id] = next(self.clock)
        self.specs[record.id] = spec
        return record.id

    @rule(job_id=jobs)
    def delete(self, job_id: str) -> None:
        if job_id in self.deleted:
            with pytest.raises(JobNotFound):
                self.deletions.delete_job(job_id)
        elif not self.expected[job_id].is_terminal:
            with pytest.raises(IllegalTransition):
                self.deletions.delete_job(job_id)
        else:
            self.deletions.delete_job(job_id)
            self._gone(job_id)

    @rule(job_id=jobs)
    def delete_and_die_after_the_tombstone(self, job_id: str) -> None:
        """The record is still there, as with a Redis that lost its last second; the reaper goes on."""
        if job_id not in self.deleted and self.expected[job_id].is_terminal:
            self.store.artifacts.put_tombstone(job_prefix(job_id))
            self.deletions.sweep()
            self._gone(job_id)

    @rule()
    def sweep(self) -> None:
        self.deletions.sweep()

    def _gone(self, job_id: str) -> None:
        self.deleted.add(job_id)
        for known in (self.expected, self.attempts, self.places, self.specs, self.checkpoints):
            known.pop(job_id, None)

    @rule(target=leases, job_id=jobs, worker=st.sampled_from(["a", "b"]))
    def acquire(self, job_id: str, worker: str) -> Any:
        if job_id in self.deleted:
            with pytest.raises(JobNotFound):
                self.store.acquire_lease(job_id, worker)
            return multiple()
        lease = self.store.acquire_lease(job_id, worker)
        assert (lease is not None) == (self.expected[job_id] is JobStatus.queued)
        if lease is None:
            return multiple()
        self.expected[job_id] = JobStatus.running
        self.holders[job_id] = lease
        return lease

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        if self._is_held(lease):
            assert self.store.renew(lease) == (lease.job_id in self.flagged)
            assert self.store.has_lease(lease.job_id)
        else:
            with pytest.raises(StaleLease):
                self.store.renew(lease)

    @rule(lease=leases, call=st.sampled_from(["check", "progress", "checkpoint", "event"]))
    def report(self, lease: Lease, call: str) -> None:
        step = next(self.clock)
        acts: dict[str, Callable[[], object]] = {
            "check": lambda: self.store.check(lease),
            "progress": lambda: self.store.report_progress(lease, Progress(step=step)),
            "checkpoint": lambda: self.store.report_checkpoint(lease, step),
            "event": lambda: self.store.append_event(lease.job_id, "step", {"step": step}, lease.token),
        }
        act = acts[call]
        if not self._is_held(lease):
            with pytest.raises(StaleLease):
                act()
            return
        answer = act()
        if call == "check":
            assert answer == (lease.job_id in self.flagged)
        if call == "checkpoint":
            self.checkpoints[lease.job_id] = step
        if call == "event":
            assert self.store.read_events(lease.job_id)[-1].id == answer

    @rule(lease=leases, call=st.sampled_from([*ENDINGS, "lose_attempt"]))
    def end(self, lease: Lease, call: str) -> None:
        arguments = ["why"] if call in ("fail", "requeue", "lose_attempt") else []
        if not self._is_held(lease):
            with pytest.raises(JobNotFound if lease.job_id in self.deleted else StaleLease):
                getattr(self.store, call)(lease, *arguments)
            return
        getattr(self.store, call)(lease, *arguments)
        if call == "lose_attempt":
            self._lose(lease.job_id)
        elif call == "requeue" and lease.job_id in self.flagged:
            self._leave_running(lease.job_id, JobStatus.cancelled)
        else:
            self._leave_running(lease.job_id, ENDINGS[call])

    @rule(job_id=jobs)
    def lease_runs_out(self, job_id: str) -> None:
        self.store.redis.delete(f"lease:{job_id}")

    @rule(job_id=jobs)
    def reap(self, job_id: str) -> None:
        if job_id in self.deleted:
            with pytest.raises(JobNotFound):
                self.store.lose_unleased(job_id, "lost")
            return
        unleased = self.expected[job_id] is JobStatus.running and not self.store.has_lease(job_id)
        assert (self.store.lose_unleased(job_id, "lost") is not None) == unleased
        if unleased:
            self._lose(job_id)

    @rule(job_id=jobs)
    def request_cancel(self, job_id: str) -> None:
        if job_id in self.deleted:
            with pytest.raises(JobNotFound):
                self.store.request_cancel(job_id)
            return
        self.store.request_cancel(job_id)
        if self.expected[job_id] is JobStatus.queued:
            self.expected[job_id] = JobStatus.cancelled
        elif self.expected[job_id] is JobStatus.running:
            self.flagged.add(job_id)

    @rule(job_id=jobs)
    def fail_queued(self, job_id: str) -> None:
        if job_id in self.deleted:
            with pytest.raises(JobNotFound):
                self.store.fail_queued(job_id, "nothing can run it")
            return
        if self.expected[job_id] is JobStatus.queued:
            assert self.store.fail_queued(job_id, "nothing can run it").error == "nothing can run it"
            self.expected[job_id] = JobStatus.failed
        else:
            with pytest.raises(IllegalTransition):
                self.store.fail_queued(job_id, "nothing can run it")

    @rule(job_id=jobs, longer=st.booleans())
    def resume(self, job_id: str, longer: bool) -> None:
        if job_id in self.deleted:
            with pytest.raises(JobNotFound):
                self.store.resume(job_id)
            return
        spec = {"steps": next(self.clock)} if longer else None
        if self.expected[job_id] in (JobStatus.failed, JobStatus.cancelled):
            self.store.resume(job_id, spec=spec)
            self.attempts[job_id] = 1
            self.places[job_id] = next(self.clock)
            self.specs[job_id] = spec or self.specs[job_id]
            self._leave_running(job_id, JobStatus.queued)
        else:
            with pytest.raises(IllegalTransition):
                self.store.resume(job_id, spec=spec)

    @rule()
    def wipe_and_restore(self) -> None:
        for job_id in self.expected:  # as the reaper does; what was only reported is told again by the holder
            self.store.save_copy(job_id)
        self.store.redis.flushall()
        assert self.store.restore_from_s3() == len(self.expected)

    @rule(lease=consumes(leases))
    def forget_lease(self, lease: Lease) -> None:
        """Its worker was killed: nobody ever uses it again."""

    @invariant()
    def nothing_is_left_of_what_was_deleted(self) -> None:
        stored = {key for key, _, _ in self.store.artifacts.list_keys("jobs/")}
        for job_id in self.deleted:
            assert not any(job_id in key for key in stored)
            assert self.store.redis.keys(f"*{job_id}*") == []
            with pytest.raises(JobNotFound):
                self.store.find(job_id)

    @invariant()
    def every_job_is_where_it_should_be(self) -> None:
        for job_id, status in self.expected.items():
            record = self.store.get(job_id)
            assert (record.status, record.attempt, record.spec) == (status, self.attempts[job_id], self.specs[job_id])
            assert record.last_checkpoint == self.checkpoints.get(job_id)
            assert record.cancel_requested == (job_id in self.flagged)
            assert (record.finished_at is not None) == status.is_terminal
            assert self.store.has_lease(job_id) <= (status is JobStatus.running)
        counted = {status: count for status, count in self.store.counts().items() if count}
        assert counted == {status: list(self.expected.values()).count(status) for status in set(self.expected.values())}
        waiting = [job_id for job_id, status in self.expected.items() if status is JobStatus.queued]
        assert self.store.waiting_ids(TRAIN_QUEUE) == sorted(waiting, key=self.places.__getitem__)


def test_any_sequence_of_calls_does_what_was_asked_or_raises_the_named_error(store: RecordStore) -> None:
    # A lease here ends when the machine says so, not by the clock.
    patient = store.settings.model_copy(update={"lease_s": 600.0, "attempt_limit": 2})
    Records.store = RecordStore(store.redis, store.artifacts, patient)
    run_state_machine_as_test(
        Records,
        settings=settings(
            max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

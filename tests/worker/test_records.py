from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from model.events import HealthEvent
from tests.worker.conftest import make_job
from worker.ids import InvalidId, new_id
from worker.jobs.kinds import JobKind
from worker.jobs.record import (
    IllegalTransition,
    JobNotFound,
    JobRecord,
    JobStatus,
    Lease,
    Progress,
    StaleLease,
)
from worker.jobs.records import RecordStore
from worker.redis_keys import TRAIN_QUEUE
from worker.settings import Settings
from worker.storage.artifacts import ArtifactMissing, Artifacts, StorageUnavailable, job_prefix

LEASED: dict[str, tuple[Callable[[RecordStore, Lease], JobRecord], JobStatus]] = {
    "succeed": (lambda store, lease: store.succeed(lease), JobStatus.succeeded),
    "fail": (lambda store, lease: store.fail(lease, "why"), JobStatus.failed),
    "cancel": (lambda store, lease: store.cancel(lease), JobStatus.cancelled),
    "requeue": (lambda store, lease: store.requeue(lease, "shut down"), JobStatus.queued),
    "lose_attempt": (lambda store, lease: store.lose_attempt(lease, "killed"), JobStatus.queued),
}


def _take(store: RecordStore, job_id: str, worker: str = "w") -> Lease:
    lease = store.acquire_lease(job_id, worker)
    assert lease is not None
    return lease


def _saved(s3: Artifacts, job_id: str) -> JobRecord:
    return JobRecord.model_validate(s3.get_json(f"{job_prefix(job_id)}job.json"))


@pytest.mark.parametrize("call", LEASED)
def test_a_leaseholder_moves_a_running_job_to_the_state_it_names(store: RecordStore, call: str) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    act, expected = LEASED[call]
    assert act(store, lease).status is expected
    assert store.get(record.id).status is expected


@pytest.mark.parametrize("call", LEASED)
@pytest.mark.parametrize("status", [JobStatus.succeeded, JobStatus.failed, JobStatus.cancelled])
def test_a_job_that_ended_refuses_its_old_leaseholder(store: RecordStore, call: str, status: JobStatus) -> None:
    record, lease = make_job(store, status)
    assert lease is not None
    with pytest.raises(StaleLease):
        LEASED[call][0](store, lease)
    assert store.get(record.id) == record


@pytest.mark.parametrize("call", LEASED)
def test_a_stale_token_is_refused_after_the_job_went_to_another_worker(store: RecordStore, call: str) -> None:
    record, old = make_job(store, JobStatus.running)
    assert old is not None
    store.redis.delete(f"lease:{record.id}")
    store.lose_unleased(record.id, "lost")
    new = _take(store, record.id, "second@worker")
    before = store.get(record.id)
    assert new.token > old.token
    with pytest.raises(StaleLease):
        LEASED[call][0](store, old)
    for use in (store.renew, store.check):
        with pytest.raises(StaleLease):
            use(old)
    with pytest.raises(StaleLease):
        store.report_progress(old, Progress(step=99))
    with pytest.raises(StaleLease):
        store.report_checkpoint(old, 99)
    with pytest.raises(StaleLease):
        store.append_event(record.id, "step", {}, old.token)
    assert store.get(record.id) == before


@pytest.mark.parametrize("status", JobStatus)
def test_only_a_queued_job_can_be_taken(store: RecordStore, status: JobStatus) -> None:
    record, _ = make_job(store, status)
    lease = store.acquire_lease(record.id, "second@worker")
    assert (lease is not None) is (status is JobStatus.queued)


@pytest.mark.parametrize("status", JobStatus)
def test_only_failed_and_cancelled_jobs_can_be_resumed(store: RecordStore, status: JobStatus) -> None:
    record, _ = make_job(store, status)
    if status in (JobStatus.failed, JobStatus.cancelled):
        resumed = store.resume(record.id, spec={"config": {"steps": 9}})
        assert (resumed.status, resumed.attempt, resumed.error) == (JobStatus.queued, 1, None)
        assert resumed.spec == {"config": {"steps": 9}}
    else:
        with pytest.raises(IllegalTransition, match=str(status)):
            store.resume(record.id)


@pytest.mark.parametrize("status", JobStatus)
def test_cancel_ends_a_waiting_job_flags_a_running_one_and_leaves_others(store: RecordStore, status: JobStatus) -> None:
    record, lease = make_job(store, status)
    after = store.request_cancel(record.id)
    if status is JobStatus.queued:
        assert after.status is JobStatus.cancelled
    elif status is JobStatus.running:
        assert after.status is JobStatus.running
        assert after.cancel_requested
        assert lease is not None
        assert store.renew(lease)
        assert store.check(lease)
    else:
        assert after == record


def test_an_unknown_job_and_a_text_that_is_no_id_have_errors_of_their_own(store: RecordStore) -> None:
    for call in (store.get, store.request_cancel, store.resume):
        with pytest.raises(JobNotFound):
            call(new_id())
        with pytest.raises(InvalidId):
            call("../../etc/passwd")


def test_of_many_workers_one_gets_the_lease(store: RecordStore) -> None:
    record, _ = make_job(store, JobStatus.queued)
    leases: list[Lease | None] = []
    threads = [
        threading.Thread(target=lambda n=n: leases.append(store.acquire_lease(record.id, f"w{n}"))) for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leases) == 12
    assert sum(lease is not None for lease in leases) == 1


def test_a_live_lease_protects_a_job_from_the_reaper_and_an_expired_one_does_not(store: RecordStore) -> None:
    record, _ = make_job(store, JobStatus.running)
    assert store.lose_unleased(record.id, "lost") is None
    assert store.redis.pttl(f"lease:{record.id}") in range(1, int(1000 * store.settings.lease_s) + 1)
    store.redis.delete(f"lease:{record.id}")
    lost = store.lose_unleased(record.id, "its worker was lost")
    assert lost is not None
    assert (lost.status, lost.attempt) == (JobStatus.queued, 2)
    assert "its worker was lost" in (lost.error or "")


def test_a_slow_holder_keeps_its_job_when_nobody_took_it_meanwhile(store: RecordStore) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    store.redis.delete(f"lease:{record.id}")
    assert store.renew(lease) is False
    assert store.has_lease(record.id)


def test_losing_attempts_ends_in_failure_at_the_limit_with_the_reason(store: RecordStore, settings: Settings) -> None:
    record, _ = make_job(store, JobStatus.queued)
    for attempt in range(1, settings.attempt_limit + 1):
        assert store.get(record.id).attempt == attempt
        store.lose_attempt(_take(store, record.id), "killed by SIGKILL")
    failed = store.get(record.id)
    assert failed.status is JobStatus.failed
    assert failed.error == f"killed by SIGKILL; gave up after {settings.attempt_limit} attempts"


def test_an_orderly_shutdown_does_not_count_as_an_attempt(store: RecordStore) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    assert store.requeue(lease, "shut down").attempt == record.attempt


@pytest.mark.parametrize("call", ["lose_attempt", "requeue"])
def test_a_lost_job_that_was_to_be_cancelled_is_cancelled(store: RecordStore, call: str) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    store.request_cancel(record.id)
    assert LEASED[call][0](store, lease).status is JobStatus.cancelled


def test_progress_shows_in_the_record_and_reaches_storage_with_the_next_transition(
    store: RecordStore, s3: Artifacts
) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    store.report_progress(lease, Progress(step=7, total_steps=10, percent=70.0), last_loss=0.25)
    store.report_checkpoint(lease, 5)
    seen = store.get(record.id)
    assert (seen.progress.step, seen.last_loss, seen.last_checkpoint) == (7, 0.25, 5)
    assert seen.version == record.version
    store.succeed(lease)
    saved = _saved(s3, record.id)
    assert (saved.status, saved.progress.step, saved.last_checkpoint) == (JobStatus.succeeded, 7, 5)


def test_a_verdict_stays_with_the_job_when_it_is_resumed(store: RecordStore, s3: Artifacts) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    assert record.health is None
    verdict = HealthEvent(step=100, level="amber", reason="chains accepted 0.30", remedy="a shorter step")
    store.report_health(lease, verdict)
    assert store.get(record.id).health == verdict
    store.fail(lease, "why")
    assert _saved(s3, record.id).health == verdict
    store.resume(record.id)
    again = store.acquire_lease(record.id, "second")
    assert again is not None
    assert store.get(record.id).health == verdict
    store.report_health(again, HealthEvent(step=200, level="green", reason="chains accepted 0.70"))
    with pytest.raises(StaleLease):
        store.report_health(lease, verdict)
    healed = store.succeed(again).health
    assert (healed and healed.level, healed and healed.remedy) == ("green", None)


def test_a_record_without_a_verdict_is_read(store: RecordStore) -> None:
    """As versions before verdicts wrote all of them."""
    record, _ = make_job(store, JobStatus.running)
    assert JobRecord.model_validate(record.model_dump(mode="json", exclude={"health"})) == record


def test_pages_list_the_newest_first_and_filter(store: RecordStore) -> None:
    ids = [store.create(JobKind.train, {}).id for _ in range(5)]
    other = store.create(JobKind.calibrate, {}, model_id=new_id())
    first = store.list(kind=JobKind.train, limit=3)
    second = store.list(kind=JobKind.train, limit=3, cursor=first.next_cursor)
    assert [record.id for record in first.records + second.records] == ids[::-1]
    assert second.next_cursor is None
    store.request_cancel(ids[0])
    assert [record.id for record in store.list(status=JobStatus.cancelled).records] == [ids[0]]
    assert [record.id for record in store.list(kind=JobKind.calibrate).records] == [other.id]
    assert store.counts()[JobStatus.queued] == 5


def test_a_job_that_lost_its_worker_is_next_and_a_resumed_one_waits_behind_all_others(store: RecordStore) -> None:
    first, second, third = (store.create(JobKind.train, {}) for _ in range(3))
    assert [store.queue_position(record) for record in (first, second, third)] == [1, 2, 3]
    lease = _take(store, first.id)
    assert [store.queue_position(record) for record in (first, second, third)] == [None, 1, 2]
    assert store.queue_position(store.requeue(lease, "shut down")) == 1
    store.request_cancel(first.id)
    assert store.queue_position(store.resume(first.id)) == 3
    assert store.waiting_ids(TRAIN_QUEUE) == [second.id, third.id, first.id]


def test_kinds_that_share_a_queue_wait_for_each_other(store: RecordStore) -> None:
    training, calibration, last = (store.create(kind, {}) for kind in (JobKind.train, JobKind.calibrate, JobKind.train))
    assert [store.queue_position(record) for record in (training, calibration, last)] == [1, 2, 3]
    assert store.waiting_ids(TRAIN_QUEUE) == [training.id, calibration.id, last.id]


def test_events_are_read_on_from_any_of_them(store: RecordStore) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    ids = [store.append_event(record.id, "step", {"step": n}, lease.token) for n in range(5)]
    assert [event.data["step"] for event in store.read_events(record.id, ids[1])] == [2, 3, 4]
    assert store.read_events(record.id, ids[-1]) == []
    assert [event.type for event in store.read_events(record.id, limit=3)] == ["status", "status", "step"]


def test_a_blocked_reader_gets_the_event_that_comes(store: RecordStore) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    last = store.read_events(record.id)[-1].id
    timer = threading.Timer(0.2, store.append_event, [record.id, "step", {"loss": float("nan")}, lease.token])
    timer.start()
    (event,) = store.read_events(record.id, last, block_ms=3000)
    assert (event.type, event.data) == ("step", {"loss": None})
    timer.join()


def test_a_job_that_ended_tells_its_events_from_storage_and_goes_on_with_them_when_resumed(store: RecordStore) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    store.append_event(record.id, "step", {"step": 1}, lease.token)
    store.fail(lease, "why")
    told = store.read_events(record.id)
    assert [event.data.get("status") for event in told] == ["queued", "running", None, "failed"]
    store.redis.delete(f"events:{record.id}")
    assert store.read_events(record.id) == told
    assert store.read_events(record.id, told[1].id) == told[2:]
    store.resume(record.id)
    assert store.read_events(record.id)[: len(told)] == told
    assert store.read_events(record.id)[-1].data["status"] == "queued"


def test_a_wiped_redis_is_rebuilt_from_storage(store: RecordStore) -> None:
    made = {status: make_job(store, status) for status in JobStatus}
    for job_id in store.unsaved_ids():  # as the reaper does
        store.save_copy(job_id)
    assert store.was_wiped()
    store.restore_from_s3()
    assert not store.was_wiped()
    before = {status: store.get(record.id) for status, (record, _) in made.items()}
    store.redis.flushall()
    assert store.was_wiped()
    assert store.restore_from_s3() == len(JobStatus)
    assert {status: store.get(record.id) for status, (record, _) in made.items()} == before
    assert set(store.counts().values()) == {1}
    assert store.restore_from_s3() == 0


def test_the_holder_of_a_running_job_goes_on_after_a_wipe_and_an_older_token_never_does(store: RecordStore) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    store.append_event(record.id, "step", {"step": 1}, lease.token)
    store.events.archive(record.id)
    store.save_copy(record.id)
    told = store.read_events(record.id)
    store.redis.flushall()
    with pytest.raises(StaleLease):
        store.renew(lease)
    store.restore_from_s3()
    assert store.has_lease(record.id)  # time for the holder to come back
    assert store.renew(lease) is False
    assert store.read_events(record.id) == told
    store.requeue(lease, "shut down")
    assert store.read_events(record.id)[: len(told)] == told
    store.redis.flushall()
    store.restore_from_s3()
    assert _take(store, record.id).token > lease.token


def test_storage_that_is_away_loses_no_transition(store: RecordStore, settings: Settings, s3: Artifacts) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    away = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    cut_off = RecordStore(store.redis, Artifacts.connect(away), away)
    assert cut_off.succeed(lease).status is JobStatus.succeeded
    assert store.unsaved_ids() == [record.id]
    assert _saved(s3, record.id).status is JobStatus.queued
    store.save_copy(record.id)
    assert store.unsaved_ids() == []
    assert _saved(s3, record.id).status is JobStatus.succeeded


def test_a_job_that_storage_did_not_take_does_not_exist(store: RecordStore, settings: Settings) -> None:
    away = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(StorageUnavailable):
        RecordStore(store.redis, Artifacts.connect(away), away).create(JobKind.train, {})
    assert store.list().records == []


def test_an_unreadable_copy_does_not_keep_the_others_from_coming_back(store: RecordStore, s3: Artifacts) -> None:
    record, _ = make_job(store, JobStatus.queued)
    s3.put_bytes(f"jobs/{new_id()}/job.json", b"not json")
    store.redis.flushall()
    assert store.restore_from_s3() == 1
    assert store.get(record.id).status is JobStatus.queued
    with pytest.raises(ArtifactMissing):
        s3.get_bytes(f"jobs/{new_id()}/job.json")


def test_what_the_holder_decides_of_a_job_is_its_spec_from_then_on_in_redis_and_s3(
    store: RecordStore, s3: Artifacts
) -> None:
    record, lease = make_job(store, JobStatus.running)
    assert lease is not None
    decided = {**record.spec, "plan": None, "decided": True}
    assert store.decide(lease, decided).spec == decided
    assert store.get(record.id).spec == _saved(s3, record.id).spec == decided
    assert store.requeue(lease, "shut down").spec == decided  # the next attempt goes on by it
    with pytest.raises(StaleLease):
        store.decide(lease, {})

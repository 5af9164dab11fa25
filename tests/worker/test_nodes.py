"""One training by the trainers of several machines, here two on this one: how they meet, and how they end."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.servers import PATIENCE_S, wait_until
from tests.worker.conftest import TRAINER, Attempt, StartWorker, make_job, tiny_spec
from tests.worker.whole_trainings import averaged, end, none_left, reach
from worker.jobs.kinds import JobKind
from worker.jobs.nodes import LEAVING, Gathering, Nodes
from worker.jobs.record import JobRecord, JobStatus
from worker.jobs.records import RecordStore
from worker.queue.broker import make_app, wake
from worker.redis_keys import GATHERING
from worker.storage.artifacts import Artifacts
from worker.trainer.supervise import Supervisor
from worker.trainer.team import Membership, Team

LONG = {"steps": 1_000_000, "checkpoint_every": 50}


def _training(store: RecordStore, num_nodes: int = 2, **changes: Any) -> JobRecord:
    return store.create(JobKind.train, tiny_spec(**changes) | {"num_nodes": num_nodes})


def _agents(record: JobRecord) -> dict[int, psutil.Process]:
    """The torchrun of every node of a job that runs."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "worker.trainer.torchrun" in command and record.id in command:
            found[int(command[command.index("worker.trainer.torchrun") + 4])] = process
    return found


@pytest.fixture
def gathering(store: RecordStore) -> Gathering:
    _, lease = make_job(store, JobStatus.running)
    assert lease is not None
    return Gathering(lease=lease, endpoint="127.0.0.1:9", num_nodes=3)


def test_every_place_is_taken_once_and_one_job_gathers_at_a_time(store: RecordStore, gathering: Gathering) -> None:
    nodes = Nodes(store.redis, store.settings)
    assert nodes.join("early@test") is None
    assert nodes.announce(gathering)
    assert nodes.announce(gathering)  # again, to keep it
    other = gathering.model_copy(update={"endpoint": "127.0.0.1:10"})
    assert not nodes.announce(other)
    nodes.withdraw(other)
    assert nodes.is_gathering()
    assert nodes.join("b@test") == (gathering, 1)
    assert nodes.join("c@test") == (gathering, 2)
    assert nodes.join("late@test") is None
    nodes.renew(gathering, 1, LEAVING)
    assert nodes.said(gathering) == [LEAVING, b"c@test"]
    nodes.leave(gathering, 1)
    assert nodes.join("late@test") == (gathering, 1)
    nodes.withdraw(gathering)
    assert nodes.join("later@test") is None
    assert nodes.announce(other)


def test_a_gathering_and_its_places_run_out_like_a_lease(store: RecordStore, gathering: Gathering) -> None:
    nodes = Nodes(store.redis, store.settings)
    nodes.announce(gathering)
    nodes.join("b@test")
    for key in (GATHERING, f"node:{gathering.lease.job_id}:{gathering.lease.token}:1"):
        assert 0 < store.redis.pttl(key) <= 1000 * store.settings.lease_s
    store.redis.set(GATHERING, b'{"of": "another version"}')
    assert nodes.join("c@test") is None


def test_a_node_that_falls_silent_is_lost_and_a_wiped_redis_is_no_silence(
    store: RecordStore, gathering: Gathering, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, clock = Nodes(store.redis, store.settings), itertools.count(0, 1000)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    team = Team(nodes, gathering, store.settings.model_copy(update={"nodes_patience_s": 1e9}))
    team.look()
    assert not team.is_complete
    members = [Membership(store, nodes, *place, f"{place[1]}@test") for place in iter(lambda: nodes.join("x"), None)]
    team.look()
    assert team.is_complete
    assert not nodes.is_gathering()
    store.redis.delete(*(f"node:{gathering.lease.job_id}:{gathering.lease.token}:{index}" for index in (1, 2)))
    team.look()
    for member in members:
        member.renew(leaves=False)
    for _ in range(3):
        team.look()
    assert (team.lost, team.leaves) == (None, False)
    members[0].end()
    for _ in range(3):
        assert team.lost is None
        team.look()
    assert team.lost == "the trainer of node 1 of 3 was lost"
    store.lose_attempt(gathering.lease, team.lost)
    assert not members[1].is_over
    members[1].renew(leaves=False)
    assert members[1].is_over


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_agent_ends_all_and_the_job_is_resumed_to_the_weights_of_one_undisturbed_process(
    store: RecordStore, s3: Artifacts, start_worker: StartWorker, tmp_path: Path
) -> None:
    steps = {"steps": 600, "checkpoint_every": 100, "log_every": 50}
    for name in ("first", "second"):
        start_worker(name, TRAINER)
    record = _training(store, **steps)
    with make_app(store.settings) as app:
        wake(app, record.kind, record.id)
        reach(store, record, 100)
        agents = _agents(record)
        assert sorted(agents) == [0, 1]
        agents[1].kill()
        assert psutil.wait_procs(agents.values(), timeout=PATIENCE_S)[1] == []
        ended = end(store, record)
        assert (ended.status, ended.attempt, ended.error) == (JobStatus.succeeded, 2, None)
        events = store.read_events(record.id, limit=10_000)
        started = [event.data for event in events if event.type == "started"]
        assert [data["num_gpus"] for data in started] == [2, 2]
        assert started[1]["step"] >= 100
        alone = _training(store, 1, **steps)
        wake(app, alone.kind, alone.id)
        assert end(store, alone).status is JobStatus.succeeded
    wait_until(lambda: none_left(record), "the end of all its processes")
    one, other = (averaged(s3, job, 600, tmp_path / job.id) for job in (record, alone))
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("for_subprocesses")
def test_two_nodes_are_interrupted_by_either_of_them_and_cancelled(store: RecordStore) -> None:
    record = _training(store, **LONG)
    reached = 50
    for leaving in (1, 0):
        attempts = [Attempt(store, "a@test")]
        wait_until(lambda: store.redis.exists(GATHERING), "the gathering")
        attempts.append(Attempt(store, "b@test"))
        reach(store, record, reached)
        attempts[leaving].stop.set()
        queued, _ = attempts[0].end(), attempts[1].end()
        assert queued is not None
        assert (queued.status, queued.attempt) == (JobStatus.queued, 1)  # in order: no attempt is lost
        assert queued.last_checkpoint is not None
        assert queued.last_checkpoint >= queued.progress.step > 0
        assert none_left(record)
        reached = queued.last_checkpoint + 50

    attempts = [Attempt(store, "a@test")]
    wait_until(lambda: store.redis.exists(GATHERING), "the gathering")
    attempts.append(Attempt(store, "b@test"))
    reach(store, record, reached)
    store.request_cancel(record.id)
    ended, _ = attempts[0].end(), attempts[1].end()
    assert ended is not None
    assert (ended.status, ended.error) == (JobStatus.cancelled, None)
    assert none_left(record)


@pytest.mark.slow
@pytest.mark.usefixtures("for_subprocesses")
def test_a_job_whose_trainers_do_not_come_goes_back_into_the_queue_with_the_reason(store: RecordStore) -> None:
    impatient = store.settings.model_copy(update={"nodes_patience_s": 3.0})
    hasty = RecordStore(store.redis, store.artifacts, impatient)
    record = _training(store, 3)
    first = Attempt(hasty, "a@test")
    wait_until(lambda: store.redis.exists(GATHERING), "the gathering")
    other, single = _training(store, 2), _training(store, 1)
    assert Attempt(store, "b@test").end() is None  # it came, and saw the end of it
    queued = first.end()
    assert queued is not None
    assert (queued.id, queued.status, queued.attempt) == (record.id, JobStatus.queued, 2)
    assert "2 of the 3 trainers that it asks for came within 3 s" in (queued.error or "")
    assert first.woken == [(record.kind, record.id)] * 3  # two for the others, one when it was queued again
    assert [store.get(one.id).status for one in (other, single)] == [JobStatus.queued] * 2
    assert not store.redis.exists(GATHERING)


@pytest.mark.slow
@pytest.mark.usefixtures("for_subprocesses")
def test_a_job_that_waits_for_its_trainers_is_cancelled_and_interrupted_at_once(store: RecordStore) -> None:
    patient = store.settings.model_copy(update={"cancel_grace_s": 600.0})
    record, words = _training(store), ("cancelled while it waited for its trainers", "shut down")
    for is_cancelled in (False, True):
        attempt = Attempt(RecordStore(store.redis, store.artifacts, patient))
        wait_until(lambda: store.redis.exists(GATHERING), "the gathering")
        if is_cancelled:
            store.request_cancel(record.id)
        else:
            attempt.stop.set()
        ended = attempt.end()
        assert ended is not None
        assert ended.status is (JobStatus.cancelled if is_cancelled else JobStatus.queued)
        assert words[not is_cancelled] in (ended.error or "")
        assert not store.redis.exists(GATHERING)
        assert none_left(record)


@pytest.mark.slow
@pytest.mark.usefixtures("for_subprocesses")
def test_while_a_job_gathers_another_of_several_nodes_waits_and_one_of_one_node_runs(store: RecordStore) -> None:
    nodes = Nodes(store.redis, store.settings)
    _, lease = make_job(store, JobStatus.running)
    assert lease is not None
    full = Gathering(lease=lease, endpoint="127.0.0.1:9", num_nodes=1)  # all have come
    several, single = _training(store, 2), _training(store, 1, steps=20)
    assert nodes.announce(full)
    ended = Attempt(store).end()
    assert ended is not None
    assert (ended.id, ended.status) == (single.id, JobStatus.succeeded)
    assert store.get(several.id).status is JobStatus.queued


class Unseeing(Nodes):
    """Sees no gathering that began after the last look, until it announces one of its own."""

    def is_gathering(self) -> bool:
        return False

    def join(self, worker: str) -> tuple[Gathering, int] | None:  # noqa: ARG002
        found, self.join = None, super().join  # type: ignore[method-assign]
        return found


@pytest.mark.slow
@pytest.mark.usefixtures("for_subprocesses")
def test_of_two_trainers_that_take_jobs_of_two_nodes_at_once_one_joins_the_other(store: RecordStore) -> None:
    first, second = _training(store, steps=20), _training(store, steps=20)
    leading = Attempt(store, "a@test")
    wait_until(lambda: store.redis.exists(GATHERING), "the gathering")
    woken = list[tuple[str, str]]()
    supervisor = Supervisor(store, store.settings, worker="b@test", wake_fn=lambda *job: woken.append(job))
    supervisor._nodes = Unseeing(store.redis, store.settings)
    assert supervisor.run() is None
    ended = leading.end()
    assert ended is not None
    assert (ended.id, ended.status) == (first.id, JobStatus.succeeded)
    assert woken == [(second.kind, second.id)]
    queued = store.get(second.id)
    assert (queued.status, queued.attempt, queued.error) == (
        JobStatus.queued,
        1,
        "another job gathers its trainers first",
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_jobs_of_two_nodes_on_two_trainers_both_end(store: RecordStore, start_worker: StartWorker) -> None:
    for name in ("first", "second"):
        start_worker(name, TRAINER)
    records = [_training(store, steps=40), _training(store, steps=40)]
    with make_app(store.settings) as app:
        for record in records:
            wake(app, record.kind, record.id)
        assert [end(store, record).status for record in records] == [JobStatus.succeeded] * 2

"""One attempt of a job, from the lease to the end: starts the subprocess, watches it, says how it ended.

The subprocess runs in a session of its own and outlives nobody: the kernel tells it when this process dies, and it
checkpoints and ends. This process keeps the lease, and has the last word on the job's status.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import structlog
from redis.exceptions import RedisError

from worker.jobs.event import NoticeEvent, data_of, type_of
from worker.jobs.nodes import Gathering, Nodes
from worker.jobs.record import JobNotFound, JobRecord, JobStatus, Lease, StaleLease
from worker.jobs.records import RecordStore
from worker.observe.redaction import hide, redact
from worker.redis_keys import TRAIN_QUEUE
from worker.settings import Settings
from worker.storage.artifacts import StorageUnavailable
from worker.trainer.exits import Exit, death_in_words, read_outcome
from worker.trainer.team import Alone, Membership, Team, meeting_place

log = structlog.get_logger(__name__)

_POLL_S = 0.1
_LOG_TAIL_CHARS = 1500
_NO_ENDPOINT = "localhost:0"
"""Where the ranks of one machine meet: any free port."""

shutdown_flag: Any = RawValue(ctypes.c_bool, False)
"""Set by the worker's main process when it is told to stop; shared with the pool processes it forks."""


class Child:
    """The job's subprocess, or torchrun and its ranks where a job asks for several GPUs."""

    def __init__(
        self, record: JobRecord, lease: Lease, directory: Path, *, node: int = 0, endpoint: str = _NO_ENDPOINT
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        arguments = [lease.job_id, str(lease.token), lease.worker, str(os.getpid()), str(directory)]
        # A file, not a pipe: the subprocess may have to write when nobody is left to read.
        with self._log_path.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *_program(record, node, endpoint), record.kind, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def _log_path(self) -> Path:
        return self.directory / "output.log"

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        return self._process.pid

    def has_ended(self, timeout_s: float) -> bool:
        """Whether the subprocess has ended within `timeout_s`."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def exit_code(self) -> int:
        """The exit code, once it has ended; −n when signal n killed it."""
        return self._process.wait()

    def terminate(self) -> None:
        """Ask it to save what it has and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it now; the kernel ends the ranks of torchrun with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def log_tail(self) -> str:
        """The end of what it wrote to stdout and stderr."""
        with contextlib.suppress(FileNotFoundError):  # a node's goes with the job, if node 0 is on the same machine
            return self._log_path.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_CHARS:].strip()
        return ""


def _program(record: JobRecord, node: int, endpoint: str) -> list[str]:
    num_gpus, num_nodes = int(record.spec.get("num_gpus", 1)), _num_nodes(record)
    if num_gpus == num_nodes == 1:
        return ["worker.trainer.attempt"]
    device = str(record.spec.get("device", "auto"))
    return ["worker.trainer.torchrun", str(num_gpus), device, str(num_nodes), str(node), endpoint]


def _num_nodes(record: JobRecord) -> int:
    return int(record.spec.get("num_nodes", 1))


class Renewal:
    """Keeps the lease in a thread, and learns there whether cancel was asked for."""

    def __init__(self, store: RecordStore, lease: Lease) -> None:
        self._store = store
        self._lease = lease
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)
        self.lost = False
        """whether the job was given to somebody else"""
        self.cancel_requested = False

    def __enter__(self) -> Renewal:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(timeout=15)

    def _run(self) -> None:
        while not self._closed.wait(self._store.settings.renew_every_s) and not self.lost:
            try:
                self.cancel_requested = self._store.renew(self._lease)
            except StaleLease:
                self.lost = _is_lost(self._store, self._lease)
            except RedisError as error:
                # The subprocess pauses by itself when this lasts (watch.py).
                log.warning("lease_not_renewed", job_id=self._lease.job_id, error=type(error).__name__)


def _is_lost(store: RecordStore, lease: Lease) -> bool:
    """Whether a job whose lease was refused is somebody else's, or was deleted.

    A record that was lost with Redis comes back from S3, with our token in it.
    """
    try:
        return not store.may_hold(lease)
    except (RedisError, StorageUnavailable):
        return False


def _quietly(tell_fn: Callable[[], object]) -> None:
    """Tell the store something that nobody misses for long."""
    try:
        tell_fn()
    except (RedisError, StaleLease) as error:
        log.warning("not_told", error=type(error).__name__)


class Supervisor:
    """Runs jobs for one worker, one at a time."""

    def __init__(
        self,
        store: RecordStore,
        settings: Settings,
        *,
        worker: str,
        wake_fn: Callable[[str, str], None],
        stop_fn: Callable[[], bool] = lambda: bool(shutdown_flag.value),
    ) -> None:
        hide(settings.secrets())
        self._store = store
        self._settings = settings
        self._worker = worker
        self._wake_fn = wake_fn
        self._stop_fn = stop_fn
        self._nodes = Nodes(store.redis, settings)

    def run(self) -> JobRecord | None:
        """Run the job that is next to the end of one attempt; None when none waits, or it was not ours at the end.

        Which message woke us does not matter: the records, not the broker, say who is next. A job that waits for more
        trainers comes first, and another one that needs several waits until it has them.
        """
        if (place := self._nodes.join(self._worker)) is not None:
            gathering, node = place
            with structlog.contextvars.bound_contextvars(job_id=gathering.lease.job_id, lease=gathering.lease.token):
                self._run_as_node(gathering, node)
            return None
        for job_id in self._store.waiting_ids(TRAIN_QUEUE):
            with contextlib.suppress(JobNotFound):
                record = self._store.get(job_id)
                if _num_nodes(record) > 1 and self._nodes.is_gathering():
                    continue
                lease = self._store.acquire_lease(job_id, self._worker)
                if lease is not None:
                    with structlog.contextvars.bound_contextvars(job_id=job_id, lease=lease.token):
                        return self._run_leased(record, lease)
        log.info("message_dropped")
        return None

    def _run_leased(self, waiting: JobRecord, lease: Lease) -> JobRecord | None:
        job_directory = self._settings.spool_dir / "jobs" / lease.job_id
        endpoint, team = _NO_ENDPOINT, Alone()
        if (num_nodes := _num_nodes(waiting)) > 1:
            gathering = Gathering(lease=lease, endpoint=meeting_place(self._settings), num_nodes=num_nodes)
            if not self._nodes.announce(gathering):  # another trainer was quicker, and waits for this one
                self._wake(self._store.requeue(lease, "another job gathers its trainers first"))
                return self.run()
            for _ in range(1, num_nodes):
                self._wake(waiting)
            endpoint, team = gathering.endpoint, Team(self._nodes, gathering, self._settings)
        with Renewal(self._store, lease) as renewal:
            child = Child(waiting, lease, job_directory / str(lease.token), endpoint=endpoint)
            try:
                self._wait(child, renewal, team)
            finally:
                child.kill()
                _quietly(team.end)
            if renewal.lost:
                log.warning("lease_lost")
                return None
            record = self._insist(lease, lambda: self._end(lease, child, renewal.cancel_requested, team))
        if record is not None and record.status is JobStatus.queued:
            self._wake(record)
        elif record is not None:
            shutil.rmtree(job_directory, ignore_errors=True)
        return record

    def _run_as_node(self, gathering: Gathering, node: int) -> None:
        """Run a node of another trainer's job to the end of its attempt. What becomes of the job, that one says."""
        lease = gathering.lease
        membership = Membership(self._store, self._nodes, gathering, node, self._worker)
        log.info("joined", node=node, num_nodes=gathering.num_nodes)
        directory = self._settings.spool_dir / "jobs" / lease.job_id / f"{lease.token}-node-{node}"
        try:
            record = self._store.get(lease.job_id)
            child = Child(record, lease, directory, node=node, endpoint=gathering.endpoint)
            try:
                self._wait_as_node(child, membership)
            finally:
                child.kill()
            self._tell_as_node(child, lease, node)
        except JobNotFound:
            log.warning("job_gone")
        finally:
            _quietly(membership.end)
            shutil.rmtree(directory, ignore_errors=True)

    def _wait_as_node(self, child: Child, membership: Membership) -> None:
        kill_at = math.inf
        while not child.has_ended(_POLL_S):
            leaves = self._stop_fn()
            if leaves:  # node 0 has all of them save and end
                kill_at = min(kill_at, time.monotonic() + self._settings.kill_grace_s)
            membership.renew(leaves=leaves)
            if membership.is_over or time.monotonic() >= kill_at:
                return

    def _tell_as_node(self, child: Child, lease: Lease, node: int) -> None:
        """Leave word in the job's events of what went wrong here, which node 0 sees as a lost connection only."""
        code, reason = read_outcome(child.directory)
        log.info("node_exited", code=child.exit_code, reason=reason)
        if code is Exit.failed or child.exit_code in (1, 2):  # what was not foreseen: its output says why
            told = NoticeEvent(text=redact(f"node {node}, {self._worker}: {reason or child.log_tail()[-500:]}"))
            _quietly(lambda: self._store.append_event(lease.job_id, type_of(told), data_of(told), lease.token))

    def _wait(self, child: Child, renewal: Renewal, team: Alone) -> None:
        terminate_at = kill_at = math.inf
        while not child.has_ended(_POLL_S):
            now = time.monotonic()
            team.look()
            if renewal.lost or team.lost is not None or now >= kill_at:
                return
            if self._stop_fn() or team.leaves:
                terminate_at = min(terminate_at, now)
            if renewal.cancel_requested:
                # Once it works, it has seen the flag itself, and is saving its last checkpoint.
                terminate_at = min(terminate_at, now + (self._settings.cancel_grace_s if team.is_complete else 0))
            if now >= terminate_at and kill_at == math.inf:
                child.terminate()
                kill_at = now + self._settings.kill_grace_s

    def _end(self, lease: Lease, child: Child, cancel_requested: bool, team: Alone) -> JobRecord:
        if team.lost is not None:
            log.warning("team_lost", reason=team.lost)
            return self._store.lose_attempt(lease, team.lost)
        code, (_, reason) = child.exit_code, read_outcome(child.directory)
        log.info("job_exited", code=code, reason=reason)
        match code:
            case Exit.succeeded:
                return self._store.succeed(lease)
            case Exit.failed:
                return self._store.fail(lease, redact(reason or "it failed and left no reason"))
            case Exit.cancelled:
                return self._store.cancel(lease)
            case Exit.stale:
                raise StaleLease(lease.job_id, lease.token)
        if cancel_requested and not team.is_complete:
            return self._store.cancel(lease, "cancelled while it waited for its trainers")
        if cancel_requested:
            return self._store.cancel(lease, "it did not stop in time and was ended; what it had stored remains")
        if code == Exit.interrupted or self._stop_fn() or team.leaves:
            return self._store.requeue(lease, "its worker was shut down; the next one goes on with it")
        if code == Exit.try_again:
            return self._store.lose_attempt(lease, redact(reason or "a store stayed away"))
        tail = redact(child.log_tail())
        if code < 0:
            log.error("job_killed", signal=-code, output=tail)
            return self._store.lose_attempt(lease, death_in_words(-code))
        return self._store.fail(lease, f"its process ended with code {code}: {tail[-500:]}")

    def _insist(self, lease: Lease, end_fn: Callable[[], JobRecord]) -> JobRecord | None:
        """Ends the job, again and again while Redis is away: nobody else knows how it ended."""
        for pause_s in self._pauses():
            try:
                return end_fn()
            except StaleLease:
                return None
            except JobNotFound:
                if _is_lost(self._store, lease):
                    return None
            except RedisError as error:
                log.warning("end_postponed", error=type(error).__name__)
            time.sleep(pause_s)
        log.error("end_given_up")
        return None

    def _pauses(self) -> Iterator[float]:
        give_up_at = time.monotonic() + self._settings.storage_patience_s
        while time.monotonic() < give_up_at:
            yield 1.0

    def _wake(self, record: JobRecord) -> None:
        try:
            self._wake_fn(record.kind, record.id)
        except Exception as error:  # the reaper sends it later
            log.warning("wake_failed", job_id=record.id, error=type(error).__name__)

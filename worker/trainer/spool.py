"""Checkpoints and sample grids on their way to S3, through a folder on the local disk.

The training hands over and goes on. A thread writes each checkpoint to disk at once, which frees its memory, and
delivers in order; storage that is away only delays it. A checkpoint appears in the folder whole (by renaming), so that
the next attempt on this machine can deliver what a killed one left behind.

    {spool_dir}/jobs/{job_id}/{lease token}/checkpoint-{step}/
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray
from redis.exceptions import RedisError

from worker.ids import InvalidId
from worker.jobs.event import CheckpointStoredEvent
from worker.jobs.record import JobNotFound, Lease, RecordError, StaleLease
from worker.jobs.records import RecordStore
from worker.pictures import picture_of
from worker.storage.artifacts import Artifacts, StorageUnavailable

log = structlog.get_logger(__name__)

_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 15.0
_PREFIX = "checkpoint-"
MAX_WAITING = 4
"""The number of checkpoints kept on disk while storage is away; when there are more, the oldest give way."""


class UndeliveredError(Exception):
    """A file could not be delivered in time, or could not even be written."""


@dataclass(frozen=True)
class _Delivery:
    name: str
    send_fn: Callable[[], None]
    directory: Path | None = None


class Spool:
    """Delivers the checkpoints and grids of one attempt; `on_checkpoint` is called once one is committed.

    `confirm_fn` is asked right before anything becomes visible: what belongs to a lost lease stays on the disk.
    """

    def __init__(
        self,
        artifacts: Artifacts,
        *,
        lease: Lease,
        model_id: str,
        directory: Path,
        on_checkpoint: Callable[[CheckpointStoredEvent], None],
        on_grid: Callable[[int, str], None],
        confirm_fn: Callable[[], None],
    ) -> None:
        self._artifacts = artifacts
        self._lease = lease
        self._model_id = model_id
        self._directory = directory
        self._on_checkpoint = on_checkpoint
        self._on_grid = on_grid
        self._confirm_fn = confirm_fn
        self._incoming: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._waiting: deque[_Delivery] = deque()
        self._retry_s = _FIRST_RETRY_S
        self._give_up_at = float("inf")
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)

    def start(self) -> None:
        """Begin to deliver files in a thread."""
        self._thread.start()

    def add_checkpoint(self, step: int, write_fn: Callable[[Path], None]) -> None:
        """Take over a checkpoint, whose files `write_fn(directory)` writes."""
        self._incoming.put(lambda: self._write_checkpoint(step, write_fn))

    def add_grid(self, step: int, samples: NDArray[np.float32]) -> None:
        """Take over samples, to draw them as a grid and deliver it."""
        self._incoming.put(
            lambda: self._waiting.append(_Delivery(f"grid {step}", lambda: self._send_grid(step, samples)))
        )

    def flush(self, timeout_s: float) -> None:
        """Deliver everything. Raises UndeliveredError after `timeout_s`, or when a checkpoint could not be written."""
        self._give_up_at = time.monotonic() + timeout_s
        self._incoming.put(None)
        self._thread.join()
        if self._error is not None:
            raise UndeliveredError(self._error)

    def _run(self) -> None:
        closing = False
        while not closing or self._waiting:
            try:
                # Waiting for the next snapshot is also the pause before the next try.
                accept_fn = self._incoming.get(timeout=self._retry_s if self._waiting else None)
                closing = closing or accept_fn is None
                if accept_fn is not None:
                    self._accept(accept_fn)
                    if not self._incoming.empty():
                        continue
            except queue.Empty:
                pass
            self._deliver_waiting()
            if self._waiting and time.monotonic() > self._give_up_at:
                self._error = f"storage did not take {self._waiting[0].name}"
                return

    def _accept(self, accept_fn: Callable[[], None]) -> None:
        try:
            accept_fn()
        except Exception as error:
            log.exception("spool_write_failed")
            self._error = f"a checkpoint could not be written to the local disk: {error}"

    def _write_checkpoint(self, step: int, write_fn: Callable[[Path], None]) -> None:
        directory = self._directory / f"{_PREFIX}{step}"
        if directory.exists():  # stopped right after a checkpoint, a training offers the same step again
            return
        partial = self._directory / f".partial-{step}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        began_at = time.monotonic()
        write_fn(partial)
        write_s = time.monotonic() - began_at
        partial.rename(directory)
        self._waiting.append(
            _Delivery(f"checkpoint {step}", lambda: self._send_checkpoint(step, directory, write_s), directory)
        )
        self._error = None
        self._make_room()

    def _make_room(self) -> None:
        checkpoints = [delivery for delivery in self._waiting if delivery.directory is not None]
        for delivery in checkpoints[:-MAX_WAITING]:
            log.warning("spool_dropped", delivery=delivery.name)
            self._waiting.remove(delivery)
            shutil.rmtree(delivery.directory or "", ignore_errors=True)

    def _deliver_waiting(self) -> None:
        while self._waiting:
            delivery = self._waiting[0]
            try:
                delivery.send_fn()
            except StaleLease:
                log.warning("upload_refused", delivery=delivery.name)
            except (StorageUnavailable, RedisError, JobNotFound) as error:
                log.warning("upload_postponed", delivery=delivery.name, error=str(error))
                self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
                return
            except Exception:
                # A grid that cannot be drawn is no reason to hold up the checkpoints behind it.
                log.exception("upload_failed", delivery=delivery.name)
                if delivery.directory is not None:
                    self._error = f"{delivery.name} could not be delivered"
            self._waiting.popleft()
            self._retry_s = _FIRST_RETRY_S

    def _send_checkpoint(self, step: int, directory: Path, write_s: float) -> None:
        size_bytes = sum(path.stat().st_size for path in directory.iterdir())
        began_at = time.monotonic()
        commit(self._artifacts, self._lease, self._model_id, step, directory, self._confirm_fn)
        upload_s = time.monotonic() - began_at
        shutil.rmtree(directory, ignore_errors=True)
        self._on_checkpoint(CheckpointStoredEvent(step=step, write_s=write_s, upload_s=upload_s, size_bytes=size_bytes))

    def _send_grid(self, step: int, samples: NDArray[np.float32]) -> None:
        picture = picture_of(samples)
        self._confirm_fn()
        self._on_grid(step, self._artifacts.put_sample_grid(self._lease.job_id, step, picture))


def commit(
    artifacts: Artifacts, lease: Lease, model_id: str, step: int, directory: Path, confirm_fn: Callable[[], None]
) -> bool:
    """Commit a checkpoint in the name of a lease, whose token its manifest carries.

    False when the step was committed before. Raises StorageUnavailable, and what `confirm_fn` raises.
    """
    extra = {"job_id": lease.job_id, "lease": lease.token}
    return artifacts.commit_checkpoint(model_id, step, directory, extra=extra, confirm_fn=confirm_fn)


def remove_finished(store: RecordStore, spool_dir: Path) -> None:
    """Free the disk of jobs that ended on another machine. Raises RedisError."""
    for directory in (spool_dir / "jobs").glob("*"):
        with contextlib.suppress(RecordError, InvalidId):
            if store.get(directory.name).status.is_terminal:
                shutil.rmtree(directory, ignore_errors=True)


def deliver_leftovers(
    artifacts: Artifacts, lease: Lease, model_id: str, job_directory: Path, confirm_fn: Callable[[], None]
) -> int:
    """Commit the checkpoints that earlier attempts on this machine wrote but did not deliver; returns how many.

    Raises StorageUnavailable, and what `confirm_fn` raises.
    """
    delivered = 0
    for directory in sorted(job_directory.glob(f"*/{_PREFIX}*")):
        step_text = directory.name.removeprefix(_PREFIX)
        if not step_text.isdecimal():
            continue
        try:
            delivered += commit(artifacts, lease, model_id, int(step_text), directory, confirm_fn)
        except OSError as error:  # its own process, still ending, delivered and removed it
            log.info("leftover_gone", step=step_text, error=type(error).__name__)
        shutil.rmtree(directory, ignore_errors=True)
    return delivered

"""What tests of trainings by several processes share: how far a training is, how it ends, and what it leaves."""

from __future__ import annotations

from pathlib import Path

import psutil
from torch import Tensor

from model.checkpoints.checkpoint import read_snapshot
from tests.servers import wait_until
from worker.jobs.record import JobRecord
from worker.jobs.records import RecordStore
from worker.storage.artifacts import Artifacts


def reach(store: RecordStore, record: JobRecord, step: int) -> None:
    """Wait for a checkpoint of a step, or of a later one."""
    wait_until(lambda: (store.get(record.id).last_checkpoint or 0) >= step, f"checkpoint {step}", timeout_s=200)


def end(store: RecordStore, record: JobRecord) -> JobRecord:
    """Wait for the end of a job."""
    wait_until(lambda: store.get(record.id).status.is_terminal, "the end", timeout_s=200)
    return store.get(record.id)


def none_left(record: JobRecord) -> bool:
    """Whether no process works on the job."""
    return not any(record.id in (process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))


def averaged(artifacts: Artifacts, record: JobRecord, step: int, directory: Path) -> dict[str, Tensor]:
    """The averaged weights of a committed checkpoint, by their names."""
    assert record.model_id is not None
    artifacts.fetch_checkpoint(record.model_id, step, directory)
    return dict(read_snapshot(directory).energy.average)

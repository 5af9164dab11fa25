"""A job's subprocess, `python -m worker.trainer.attempt KIND JOB_ID TOKEN WORKER PARENT_PID DIRECTORY`, and its frame.

What is done in it is the class `Run` of the kind's module under worker/kinds/.

torchrun (torchrun.py) starts several of them for one job, the ranks; the first one leads and speaks for all. The
subprocess alone imports torch and touches the GPU, so that its memory is freed whatever happens. It acts in the
name of the lease it was started with: its events, progress and results are refused once the job is somebody else's.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import structlog
from redis.exceptions import RedisError

from model.config import NetworkConfig
from model.errors import ModelError, RankError
from worker.jobs.kinds import kind_of
from worker.jobs.record import JobNotFound, JobRecord, Lease, StaleLease
from worker.jobs.records import RecordStore
from worker.observe.logs import configure_logging
from worker.settings import Settings
from worker.storage.artifacts import ArtifactDamaged, ArtifactMissing, StorageUnavailable
from worker.trainer.exits import Exit, write_outcome
from worker.trainer.spool import UndeliveredError
from worker.trainer.telemetry import Telemetry
from worker.trainer.watch import StopReason, Watch

T = TypeVar("T")

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_TELEMETRY_PATIENCE_S = 10.0
_AWAY = (StorageUnavailable, RedisError, JobNotFound)
"""A store that does not answer, or a Redis that was wiped and is not refilled yet."""
_REMEDY = "set microbatch_size, or lower batch_size or the network's width"
NODE_VARIABLE = "TRAINING_NODE"
"""The environment variable in which torchrun.py tells its ranks which node of the job they are on."""
_ENDINGS = {
    None: Exit.succeeded,
    StopReason.cancelled: Exit.cancelled,
    StopReason.interrupted: Exit.interrupted,
    StopReason.stale: Exit.stale,
}


class Attempt(ABC):
    """One attempt at a job, from the first look at its record to an exit code; or one rank of `num_ranks` of it."""

    def __init__(
        self,
        store: RecordStore,
        lease: Lease,
        directory: Path,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        local_rank: int = 0,
    ) -> None:
        self.store = store
        self.artifacts = store.artifacts
        self.settings = store.settings
        self.lease = lease
        self.directory = directory
        self.rank = rank
        self.num_ranks = num_ranks
        self.local_rank = local_rank
        """the number among the ranks of this machine"""
        self.watch = Watch(store, lease)
        self.telemetry = Telemetry(store, lease)
        self._num_threads: int | None = None

    @abstractmethod
    def work(self, record: JobRecord) -> StopReason | None:
        """Do the job, asking `watch.should_stop` often. Returns why it ended early, or None when it is done.

        May raise what `run` puts into words: ModelError, UndeliveredError, ArtifactError, StaleLease, RedisError.
        """

    def run(self) -> Exit:
        """Do the work. Every ending is an exit code, with a reason in words where there is one."""
        if self.rank == 0:  # the others do as the leading rank does
            self.watch.start()
        self.telemetry.start()
        try:
            return self._ended(_ENDINGS[self.work(self.patiently(lambda: self.store.get(self.lease.job_id)))])
        except RankError as error:
            return self._ended(Exit.try_again, str(error))
        except (ModelError, UndeliveredError, ArtifactMissing, ArtifactDamaged) as error:
            return self._ended(Exit.failed, str(error))
        except StaleLease:
            return self._ended(Exit.stale)
        except _AWAY as error:
            return self._ended(Exit.try_again, f"a store stayed away: {error}")
        except MemoryError as error:
            return self._ended(Exit.failed, f"out of memory: {error}; {_REMEDY}")
        except Exception as error:
            traceback.print_exc()
            return self._ended(Exit.failed, _unexpected(error))
        finally:
            self.telemetry.close(_TELEMETRY_PATIENCE_S)
            self.watch.close()

    def patiently(self, call_fn: Callable[[], T]) -> T:
        """Ask a store, again and again while it is away, and return its answer. Raises what it raised last."""
        give_up_at = time.monotonic() + self.settings.storage_patience_s
        while True:
            try:
                return call_fn()
            except _AWAY as error:
                if time.monotonic() > give_up_at or self.watch.reason is not None:
                    raise
                log.warning("store_away", error=str(error))
                time.sleep(1)

    def use_threads(self, config: NetworkConfig, event_shape: tuple[int, ...], batch_size: int) -> None:
        """Use no more CPU threads than this process's part of batches of that size can keep busy."""
        import torch

        from model.networks.registry import useful_threads

        self._num_threads = self._num_threads or torch.get_num_threads()  # before it was ever lowered
        torch.set_num_threads(min(self._num_threads, useful_threads(config, event_shape, batch_size // self.num_ranks)))

    def _ended(self, code: Exit, reason: str | None = None) -> Exit:
        if reason is not None:
            log.error("attempt_ended", outcome=code.name, reason=reason)
        if reason is not None or self.num_ranks > 1:  # alone, the code says the rest
            write_outcome(self.directory, code, reason, rank=self.rank)
        return code


def main(arguments: list[str]) -> int:
    """Run one attempt at a job, or one rank of it; returns an `Exit`."""
    name, job_id, token, worker, parent_pid, directory = arguments
    rank, num_ranks, local_rank = _place(os.environ)
    settings = Settings()
    # torchrun passes SIGTERM on and waits for its ranks; when it dies itself, nobody does any more.
    die_with_parent(int(parent_pid), signal.SIGTERM if num_ranks == 1 else signal.SIGKILL)
    faulthandler.enable()  # a crash in native code leaves its stack in the log
    configure_logging()
    structlog.contextvars.bind_contextvars(job_id=job_id, lease=token)
    if num_ranks > 1:
        structlog.contextvars.bind_contextvars(rank=rank)
    store = RecordStore.connect(settings)
    lease = Lease(job_id=job_id, token=int(token), worker=worker)
    attempt = _run_of(name)(store, lease, Path(directory), rank=rank, num_ranks=num_ranks, local_rank=local_rank)
    # All ranks end after the same step: the leading one is told, and the others follow it.
    signal.signal(signal.SIGTERM, (lambda *_: attempt.watch.interrupt()) if rank == 0 else signal.SIG_IGN)
    end_after_sigterm(settings.kill_grace_s)
    code = attempt.run()
    # torchrun ends the other ranks at once when one returns anything but 0; how it ended is in its file.
    return Exit.succeeded if num_ranks > 1 and code.in_order else code


def _run_of(name: str) -> type[Attempt]:
    """The class that does the work of a kind of job. Only its own module is imported, since it may need much."""
    kind = kind_of(name)
    if kind is None:
        raise SystemExit(f"{name!r} is no kind of job that this version knows")
    run: type[Attempt] = importlib.import_module(kind.module).Run
    return run


def _place(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Return (rank, number of ranks, rank on this machine) of this process.

    torchrun numbers machines as it likes. Here those of node 0, which holds the lease, come first.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return 0, 1, 0
    local_rank, node = int(environment["LOCAL_RANK"]), int(environment[NODE_VARIABLE])
    rank = node * int(environment["LOCAL_WORLD_SIZE"]) + local_rank
    return rank, int(environment["WORLD_SIZE"]), local_rank


def device_of(record: JobRecord) -> str:
    """The device that the job's spec asks for, "auto" decided. Raises ModelError when this worker does not have it."""
    import torch

    wanted = str(record.spec.get("device", "auto"))
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device is {wanted!r}, but this worker has no usable GPU; use 'auto' or 'cpu'")
    return wanted


def die_with_parent(parent_pid: int, number: signal.Signals) -> None:
    """Have the kernel send that signal when the parent dies, however it dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:
        raise SystemExit("the supervisor died before the work started")


def end_after_sigterm(grace_s: float) -> None:
    """Have this process end at most `grace_s` seconds after SIGTERM, without saving anything, if it still runs then.

    Python calls a handler only when the main thread is back in Python, and a hung GPU or file system never lets it go;
    the byte for the pipe is written at once.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def run() -> None:
        while os.read(reading, 1) != bytes([signal.SIGTERM]):
            pass
        time.sleep(grace_s)
        os._exit(Exit.interrupted)

    threading.Thread(target=run, name="end", daemon=True).start()


def _unexpected(error: Exception) -> str:
    if type(error).__name__ == "OutOfMemoryError":
        return f"the GPU is out of memory; {_REMEDY}, or use a larger GPU"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"unexpected {type(error).__name__} at {where}: {str(error)[:500]}"


if __name__ == "__main__":
    # Not from `__main__`: the kinds' modules import their frame from the module of this name.
    from worker.trainer.attempt import main as main_of_module

    sys.exit(main_of_module(sys.argv[1:]))

"""The processes that a chaos run kills and restarts: Valkey, SeaweedFS, the API and two trainers, all real."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
from pydantic import SecretStr

from tests.conftest import environment_of
from tests.servers import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS, Valkey, free_ports, tethered, wait_until
from tests.worker.conftest import ROOT, TRAINER, WorkerProcess
from worker.connect import redis_client
from worker.jobs.records import RecordStore
from worker.redis_keys import REAPER_LOCK
from worker.settings import Settings

LEASE_S = 6.0
TRAINERS = ("one", "two")
_RESTART_AFTER_S = 1.0
"""The seconds that an init system would take to start a dead worker again."""


class Stack:
    """The stack of a chaos run in one folder: one process of each kind, and two trainers."""

    def __init__(self, directory: Path) -> None:
        ports = free_ports(7)
        self.directory = directory
        self.valkey = Valkey(ports[0], directory / "valkey")
        self.weed = SeaweedFS(ports[1:6], directory / "weed")
        self.settings = Settings(
            redis_url=self.valkey.url,
            s3_endpoint_url=self.weed.url,
            s3_bucket=BUCKET,
            s3_access_key=SecretStr(ACCESS_KEY),
            s3_secret_key=SecretStr(SECRET_KEY),
            lease_s=LEASE_S,
            heartbeat_s=1.0,
            reaper_every_s=0.5,
            kill_grace_s=15.0,
            attempt_limit=30,  # each kill uses up an attempt, and here they are many on purpose
            keep_last=10_000,  # the judge reads the manifests of all
            visibility_timeout_s=20,
            spool_dir=directory / "spool",
        )
        self.store = RecordStore(
            redis_client(self.settings), RecordStore.connect(self.settings).artifacts, self.settings
        )
        self.environment = environment_of(self.settings) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.workers: dict[str, WorkerProcess] = {}
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{ports[6]}", timeout=90, trust_env=False)
        self._api_port = ports[6]
        self._api: subprocess.Popen[bytes] | None = None
        self.killed: list[psutil.Process] = []
        """Every process of the workers that were killed, with their trainings; none may outlive its grace."""

    @contextlib.contextmanager
    def running(self) -> Iterator[Stack]:
        """Run everything within a block, and leave nothing after it."""
        try:
            self.valkey.start()
            self.weed.start()
            self._start_api()
            for name in TRAINERS:
                self.start_worker(name)
            yield self
        finally:
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.valkey.stop()
            self.weed.stop()

    def _start_api(self) -> None:
        command = tethered([sys.executable, "-m", "uvicorn", "service.app:app", "--port", str(self._api_port)])
        with (self.directory / "api.log").open("ab") as log:
            self._api = subprocess.Popen(command, env=os.environ | self.environment, cwd=ROOT, stdout=log, stderr=log)
        wait_until(lambda: self.ask("GET", "/healthz") is not None, "the API")

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response | None:
        """Return the API's answer, whatever its status, or None when the API cannot be reached."""
        with contextlib.suppress(httpx2.TransportError):
            return self.http.request(method, path, **more)
        return None

    def start_worker(self, name: str) -> None:
        """Start a trainer; it is ready some seconds later."""
        self.workers[name] = WorkerProcess(name, TRAINER, self.environment, self.directory / f"{name}.log")

    def is_ready(self, name: str) -> bool:
        """Say whether a trainer has announced itself."""
        return bool(self.store.redis.exists(f"worker:train:{name}@test"))

    def restart_worker(self, name: str) -> None:
        """Start a trainer that was killed or stopped, as its machine's init system would."""
        time.sleep(_RESTART_AFTER_S)
        self.start_worker(name)

    def kill_worker(self, name: str, *, whole: bool) -> None:
        """Kill with -9 the main process, or with `whole` everything that belongs to it, as when the machine dies."""
        family = self.workers[name].family()
        self.killed += family
        for process in family if whole else family[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.workers[name].process.wait()

    def reaper_host(self) -> str | None:
        """Return the name of the trainer that hosts the reaper at present."""
        holder: Any = self.store.redis.get(REAPER_LOCK)
        name = holder.decode().split("@")[0] if holder else None
        return name if name in self.workers else None

    def trainings(self) -> dict[str, psutil.Process]:
        """Return the training subprocesses by job."""
        found: dict[str, psutil.Process] = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error, ValueError):
                command = process.cmdline()
                _, job_id, *_ = command[command.index("worker.trainer.attempt") + 1 :]
                found[job_id] = process
        return found

    def processes(self) -> list[psutil.Process]:
        """Return every live process that was started with this stack's settings."""
        mark = self.environment["RECOVERY_SPOOL_DIR"]
        return [process for process in psutil.process_iter() if _has_setting(process, "RECOVERY_SPOOL_DIR", mark)]

    def outliving(self) -> list[psutil.Process]:
        """Return the processes of killed workers that are still there."""
        return [process for process in self.killed if _lives(process)]


def _has_setting(process: psutil.Process, name: str, value: str) -> bool:
    try:
        return _lives(process) and process.environ().get(name) == value
    except psutil.Error:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

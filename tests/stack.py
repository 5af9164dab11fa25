"""`recovery up` as a person runs it: a process of its own, on a folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from service.client import Recovery
from tests.servers import tethered
from worker.settings import Settings

READY_TIMEOUT_S = 120.0
TINY = {
    "schedule": {"num_levels": 3},
    "network": {"width": 4, "multipliers": [1], "num_blocks": 1},
    "chain": {"num_steps": 1},
    "sampling": {"num_steps": 1},
    "score_matching": {"steps": 10, "batch_size": 8},
    "batch_size": 8,
    "log_every": 5,
    "num_preview_samples": 4,
}
"""Laid over a preset: a training of seconds that takes the same path through the system."""


class UpCommand:
    """One run of `recovery up`."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self.process = subprocess.Popen(
            tethered([sys.executable, "-u", "-m", "service.cli", "up", "--data", str(data), *arguments]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"RECOVERY_TUNING_SHARE": "0"},  # whether a short training is tuned is chance
        )
        self.output = ""
        self.url = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_until_ready(self) -> Recovery:
        """A client, once the command says that the service is there."""
        assert self._ready.wait(READY_TIMEOUT_S), self.output
        assert self.url, self.output
        return Recovery(self.url)

    def children(self) -> list[psutil.Process]:
        """Everything below the command at this moment."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def settings(self) -> Settings:
        """Those of its workers."""
        prefix = "RECOVERY_"
        environment = next(found for child in self.children() if f"{prefix}REDIS_URL" in (found := child.environ()))
        values = {name.removeprefix(prefix).lower(): text for name, text in environment.items()}
        return Settings(**{name: text for name, text in values.items() if name in Settings.model_fields})  # type: ignore[arg-type]

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal and wait; the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(90)
        self._reader.join()
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.output += line
                if found := re.search(r"ready at (\S+)", line):
                    self.url = found[1]
                    self._ready.set()
        self._ready.set()


def follow_to_a_step(client: Recovery, job_id: str, *, after: str | None = None) -> str:
    """Follow a job until it has trained a little; the id of that event."""
    for event in client.events(job_id, after=after):
        if event["type"] == "step":
            return str(event["id"])
    raise AssertionError(f"the job ended before it trained: {client.job(job_id)['error']}")


def survivors(processes: list[psutil.Process], *, within_s: float = 10.0) -> list[str]:
    """Command lines of those that have not ended in time."""
    deadline = time.monotonic() + within_s
    while living := [process for process in processes if _lives(process)]:
        if time.monotonic() > deadline:
            return [" ".join(process.cmdline()) for process in living]
        time.sleep(0.05)
    return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

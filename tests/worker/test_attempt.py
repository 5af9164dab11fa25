"""The frame of a job's subprocess: it ends after its worker, whatever it hangs in."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from tests.servers import wait_until
from tests.worker.conftest import ROOT

GRACE_S = 0.5
HUNG = f"""
import ctypes, os, signal, sys
from worker.trainer.attempt import die_with_parent, end_after_sigterm
die_with_parent(int(sys.argv[1]), signal.SIGTERM)
signal.signal(signal.SIGTERM, lambda *_: None)
end_after_sigterm({GRACE_S})
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
print(os.getpid(), flush=True)
libc.pthread_mutex_lock(mutex)  # waits for ever, and no signal interrupts it
"""
WORKER = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {HUNG!r}, str(os.getpid())])"


@pytest.mark.slow
def test_a_subprocess_that_hangs_in_native_code_does_not_outlive_its_killed_worker() -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, cwd=ROOT) as worker:
        assert worker.stdout is not None
        hung = psutil.Process(int(worker.stdout.readline()))
        try:
            worker.kill()
            killed_at = time.monotonic()
            wait_until(lambda: not _lives(hung), "the end of the subprocess")
            assert time.monotonic() - killed_at >= GRACE_S  # it had its time to save what it has
        finally:
            if _lives(hung):
                hung.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

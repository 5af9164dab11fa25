"""What a test starts does not outlive the test run, whatever ends that."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.servers import wait_until
from tests.stack import survivors

ROOT = Path(__file__).resolve().parents[1]
_VALKEY = """
with running_valkey(directory / "valkey"):
    (directory / "ready").touch()
    time.sleep(120)
"""
_STACK = """
command = UpCommand(directory / "data")
command.wait_until_ready().close()
(directory / "ready").touch()
time.sleep(120)
"""


@pytest.mark.stack
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("start", "end"),
    [(_VALKEY, signal.SIGTERM), (_VALKEY, signal.SIGKILL), (_STACK, signal.SIGTERM)],
    ids=["a server, SIGTERM", "a server, SIGKILL", "a stack, SIGTERM"],
)
def test_nothing_is_left_of_what_a_killed_test_run_started(start: str, end: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tests.stack import UpCommand\n"
        f"from tests.servers import running_valkey\ndirectory = Path(sys.argv[1])\n{start}"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) as run:
        try:
            wait_until((tmp_path / "ready").exists, "the start", timeout_s=150)
            below = psutil.Process(run.pid).children(recursive=True)
            assert below
        finally:
            run.send_signal(end)
    left = survivors(below)
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert left == []

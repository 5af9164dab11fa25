"""Nothing outlives the process that asked for it, whatever it forks and however that process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from service.stack import tether
from tests.servers import PATIENCE_S

_TREE = """
import subprocess, sys, time
from pathlib import Path
sleep = "import time; time.sleep(60)"
# A grandchild in a session of its own, as a trainer is, whose parent is gone.
orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True)"
subprocess.run([sys.executable, "-c", orphan])
subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + sleep])
time.sleep(0.5)
Path(sys.argv[1]).touch()
time.sleep(60)
"""


def command(*arguments: str, parent: int | None = None) -> list[str]:
    """A tethered Python."""
    return [sys.executable, tether.__file__, str(parent or os.getpid()), sys.executable, *arguments]


def wait_for(path: Path) -> None:
    """Until a child has come so far."""
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(processes: list[psutil.Process], *, within_s: float = 5) -> bool:
    """Whether all of them ended."""
    deadline = time.monotonic() + within_s
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes if psutil.pid_exists(p.pid)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_the_exit_status_is_the_commands() -> None:
    assert subprocess.run(command("-c", "raise SystemExit(7)"), check=False).returncode == 7
    assert subprocess.run(command("-c", "import os; os.kill(os.getpid(), 9)"), check=False).returncode == 128 + 9


def test_sigterm_reaches_the_command() -> None:
    code = "import signal,sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); print(flush=True); signal.pause()"
    with subprocess.Popen(command("-c", code), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(PATIENCE_S) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_a_killed_parent_takes_the_whole_tree_with_it(tmp_path: Path) -> None:
    supervisor = textwrap.dedent(f"""
        import os, subprocess, sys, time
        command = [sys.executable, {tether.__file__!r}, str(os.getpid()), sys.executable, "-c", {_TREE!r}]
        subprocess.Popen([*command, {str(tmp_path / "grown")!r}], start_new_session=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", supervisor]) as process:
        wait_for(tmp_path / "grown")
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()

    assert len(below) == 4
    assert gone(below)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    with subprocess.Popen(command("-c", _TREE, str(tmp_path / "grown"))) as process:
        wait_for(tmp_path / "grown")
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM

    assert gone(below)


def test_a_parent_already_gone_is_noticed() -> None:
    assert subprocess.run(command("-c", "", parent=1 << 22), check=False).returncode == 128 + tether.PARENT_DIED

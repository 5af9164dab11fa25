"""Run one command so that nothing of it outlives the process that asked for it: `python tether.py COMMAND ...`.

`recovery up` starts every child through here. The tether
  - is told by the kernel (PR_SET_PDEATHSIG) when its parent dies, also by SIGKILL, and then kills everything below it;
  - adopts orphans (PR_SET_CHILD_SUBREAPER), so that grandchildren in sessions of their own, as trainers are, are found;
  - passes SIGTERM, SIGINT and SIGQUIT on to the command, and ends with the command's exit status;
  - keeps the descriptors it was given open until all is gone: with them the lock of the data folder.

It is run by its path and imports only the standard library, so it starts in a few milliseconds. It works on Linux;
elsewhere it only passes signals on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

PARENT_DIED = signal.SIGHUP
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def run(command: list[str], parent: int) -> int:
    """Run `command` until it ends or process `parent` dies; return its exit status, 128 + n after signal n."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def die_with_tether() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def parent_died(_signal: int, _frame: FrameType | None) -> None:
        kill_descendants()
        os._exit(128 + PARENT_DIED)

    signal.signal(PARENT_DIED, parent_died)
    if libc is not None:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        libc.prctl(_PR_SET_PDEATHSIG, PARENT_DIED)
    if os.getppid() != parent:  # the parent died before the kernel was asked to tell
        return 128 + PARENT_DIED
    # This process has one thread, so code between fork and exec is safe.
    child = subprocess.Popen(command, preexec_fn=die_with_tether)
    for number in FORWARDED:
        signal.signal(number, lambda received, _frame: child.send_signal(received))
    status = _wait(child.pid)
    child.returncode = status  # the loop reaped it, not Popen
    kill_descendants()
    return status


def kill_descendants() -> None:
    """Send SIGKILL to everything below this process, again until nothing is left.

    Once is not enough, because a process that was killed may just have forked.
    """
    while living := [process for process in descendants(os.getpid()) if not _reap(process)]:
        for process in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def descendants(root: int) -> list[int]:
    """Return the ids of all processes below `root`, from /proc."""
    children: dict[int, list[int]] = {}
    for process, parent in _parents():
        children.setdefault(parent, []).append(process)
    found, pending = [], [root]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The line is "pid (name) state ppid ...", and the name may hold spaces and brackets.
            yield int(entry.parent.name), int(entry.read_text().rpartition(")")[2].split()[1])


def _reap(process: int) -> bool:
    try:
        return os.waitpid(process, os.WNOHANG)[0] == process
    except ChildProcessError:  # a grandchild: its parent reaps it, or this process once the parent is gone
        return False


def _wait(command: int) -> int:
    """Reap the command, and orphans handed to this process meanwhile; return the command's exit status."""
    while True:
        process, status = os.waitpid(-1, 0)
        if process == command:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:], parent=int(sys.argv[1])))

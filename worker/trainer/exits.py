"""How a job's subprocess tells its supervisor the outcome: an exit code, and a file with the reason in words.

Where torchrun runs several processes, the ranks, each leaves such a file, with its code.
"""

from __future__ import annotations

import json
import signal
from enum import IntEnum
from pathlib import Path


class Exit(IntEnum):
    """Exit codes of a job's subprocess; 1 and 2 are Python's own, for what was not foreseen."""

    succeeded = 0
    interrupted = 20
    """It was told to stop by SIGTERM; a checkpoint is saved, or on its way in the spool."""
    cancelled = 21
    failed = 22
    """Trying again would fail again; the file says why."""
    try_again = 23
    """Something outside was away; the file says what."""
    stale = 24
    """The job was given to another worker."""

    @property
    def in_order(self) -> bool:
        """Whether the process did what it was asked to, so that every other rank does the same."""
        return self in (Exit.succeeded, Exit.interrupted, Exit.cancelled)


_DEATHS = {
    "SIGKILL": ", most likely because the machine ran out of memory",
    "SIGSEGV": ", a crash in native code",
    "SIGABRT": ", a crash in native code",
    "SIGBUS": ", a crash in native code or a full disk",
}


def write_outcome(directory: Path, code: Exit, reason: str | None = None, *, rank: int = 0) -> None:
    """Leave the exit code and the reason for the supervisor."""
    _path(directory, rank).write_text(json.dumps({"code": code, "reason": reason}), encoding="utf-8")


def read_outcome(directory: Path, *, rank: int = 0) -> tuple[Exit | None, str | None]:
    """Read (code, reason); either is None where the subprocess did not leave it."""
    try:
        outcome = json.loads(_path(directory, rank).read_text(encoding="utf-8"))
        return Exit(outcome["code"]), outcome["reason"]
    except (OSError, ValueError, KeyError):
        return None, None


def death_in_words(number: int) -> str:
    """Say why a process that a signal killed is gone, for instance that memory ran out."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"its process was killed by {name}{_DEATHS.get(name, '')}"


def _path(directory: Path, rank: int) -> Path:
    return directory / f"outcome-{rank}.json"

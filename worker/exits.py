"""How a job's subprocess tells its supervisor the outcome: an exit code, and a file with the reason in words."""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path


class Exit(IntEnum):
    """Exit codes of a job's subprocess; 1 and 2 are Python's own, for what was not foreseen."""

    succeeded = 0
    interrupted = 20
    """Told to stop by SIGTERM; a checkpoint is saved, or on its way in the spool."""
    cancelled = 21
    failed = 22
    """Trying again would fail again; the file says why."""
    try_again = 23
    """Something outside was away; the file says what."""
    stale = 24
    """The job was given to another worker."""


_FILE = "outcome.json"


def write_reason(directory: Path, reason: str) -> None:
    """Leave the reason for the supervisor."""
    (directory / _FILE).write_text(json.dumps({"reason": reason}), encoding="utf-8")


def read_reason(directory: Path) -> str | None:
    """The reason the subprocess left, if any."""
    try:
        reason = json.loads((directory / _FILE).read_text(encoding="utf-8"))["reason"]
    except (OSError, ValueError, KeyError):
        return None
    return str(reason)

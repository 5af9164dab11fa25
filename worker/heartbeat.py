"""A worker's sign of life for whoever runs its container: a file that it touches every few seconds.

    python -m worker.heartbeat

exits 0 if the file in RECOVERY_HEARTBEAT_FILE is fresh, and 1 with a sentence if it is not. Celery's own `inspect ping`
answers only between two tasks, so a busy worker would be killed for being busy. Standard library alone: the command
runs every few seconds beside a training.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

FILE_VARIABLE = "RECOVERY_HEARTBEAT_FILE"
MAX_AGE_S = 60.0
"""Twelve beats of the default; a Redis that hangs delays the next beat by 20 s at most."""


def beat(path: Path) -> None:
    """Say that this process lives. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def complaint(path: Path, max_age_s: float) -> str | None:
    """What is wrong with the heartbeat file, in words, or None when it is fresh."""
    try:
        age_s = time.time() - path.stat().st_mtime
    except OSError as error:
        return f"no heartbeat: {path} cannot be read ({error.strerror}); the worker has not become ready"
    if age_s > max_age_s:
        return f"no heartbeat: {path} was touched {age_s:.0f} s ago, more than {max_age_s:g} s; the worker hangs"
    return None


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m worker.heartbeat", description="Is the worker beside me alive?")
    parser.add_argument("--file", type=Path, default=os.environ.get(FILE_VARIABLE), help=f"default: {FILE_VARIABLE}")
    parser.add_argument("--max-age", type=float, default=MAX_AGE_S, metavar="S", help="seconds; default %(default)g")
    chosen = parser.parse_args(arguments)
    if chosen.file is None:
        parser.error(f"which file? set {FILE_VARIABLE}, as for the worker, or give --file")
    found = complaint(chosen.file, chosen.max_age)
    if found is not None:
        print(found, file=sys.stderr)  # noqa: T201 # a container engine shows what the check printed
    return int(found is not None)


if __name__ == "__main__":
    sys.exit(main())

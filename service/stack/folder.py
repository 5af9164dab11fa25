"""The folder of an embedded stack, which one stack holds at a time and whose secrets only its owner can read."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from service.door.keys import write_private
from service.stack.child import LocalStackError

LOCK_TIMEOUT_S = 10.0
"""The seconds to wait until the processes of a killed stack have let go of the folder."""
_POLL_S = 0.1
ENVIRONMENT_FILE = "environment.json"


@dataclass(frozen=True)
class Secrets:
    """The credentials of the stack's own servers."""

    redis_password: str
    s3_access_key: str
    s3_secret_key: str


@contextlib.contextmanager
def locked(path: Path, report_fn: Callable[[str], None]) -> Iterator[int]:
    """Hold the folder's lock and yield its descriptor.

    The kernel releases the lock when the last process that holds the descriptor is gone.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _acquire(descriptor, path, report_fn)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, report_fn: Callable[[str], None]) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            running = path.with_name("endpoint.json")
            # A stack that runs has said where; the processes of one that was killed may need a moment to end.
            if time.monotonic() > deadline or _is_served(running):
                raise LocalStackError(_in_use(path.parent, running)) from None
            report_fn("waiting for the processes of an earlier stack to end")
            time.sleep(_POLL_S)


def _is_served(endpoint: Path) -> bool:
    try:
        os.kill(int(json.loads(endpoint.read_text())["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return False
    return True


def _in_use(directory: Path, endpoint: Path) -> str:
    try:
        where = f" at {json.loads(endpoint.read_text())['url']}"
    except (OSError, ValueError, KeyError):
        where = ""
    return f"another `recovery up` runs on {directory}{where}; stop it, or give this one another --data folder"


def read_secrets(path: Path) -> Secrets:
    """Read the stack's secrets, which are made and stored, for this user alone, the first time.

    Raises LocalStackError.
    """
    if not path.exists():
        made = Secrets(*(secrets.token_urlsafe(length) for length in (32, 15, 32)))
        write_private(path, json.dumps(vars(made)) + "\n")
    try:
        return Secrets(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise LocalStackError(f"{path} is damaged ({error}); the data it opens is of no use without it") from error


def read_environment(directory: Path) -> dict[str, str]:
    """Read the RECOVERY_ variables of the workers of the stack that runs on a folder.

    Raises LocalStackError if no stack runs on it.
    """
    if not _is_served(directory / "endpoint.json"):
        raise LocalStackError(
            f"no `recovery up` runs on {directory}; start one, or give the --data folder of the one that runs"
        )
    variables: dict[str, str] = json.loads((directory / ENVIRONMENT_FILE).read_text())
    return variables

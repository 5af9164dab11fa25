"""A process of the embedded stack, which runs behind a tether and writes to its own log; and the stack's errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from service.foreseen import ForeseenError
from service.stack import tether

_LOG_TAIL_LINES = 15


class LocalStackError(ForeseenError):
    """The embedded stack could not start or go on. The one sentence says why, and what to do."""


class ChildDiedError(LocalStackError):
    """A process of the stack ended by itself; `log_tail` holds the last lines that it wrote."""

    def __init__(self, message: str, log_tail: str) -> None:
        super().__init__(message)
        self.log_tail = log_tail


class Child:
    """One process of the stack, which runs behind a tether and writes to its own log."""

    def __init__(
        self, name: str, command: list[str], *, log: Path, environment: Mapping[str, str], lock: int, grace_s: float
    ) -> None:
        self.name = name
        self.log = log
        self.grace_s = grace_s
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            # The child has a session of its own, so that Ctrl-C reaches only the supervisor, which stops in order.
            # The tether inherits the lock: while anything of this stack lives, no other stack opens the folder.
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-E", tether.__file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                pass_fds=[lock],
            )

    def require_alive(self) -> None:
        """Raise ChildDiedError, with the end of the log, if the process has ended."""
        status = self.process.poll()
        if status is not None:
            how = f"was killed by signal {status - 128}" if status > 128 else f"ended with status {status}"
            raise ChildDiedError(f"{self.name} {how}; its log is {self.log}", self.log_tail())

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])

    def stop(self) -> None:
        """Send SIGTERM, and after `grace_s` seconds kill the process and everything below it."""
        self.process.terminate()
        try:
            self.process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill the process and everything below it at once."""
        self.process.send_signal(tether.PARENT_DIED)
        self.process.wait()

"""A process of the embedded stack, behind a tether, writing to its own log; and the errors of that stack."""

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
    """The embedded stack could not start or go on; one sentence, and what to do."""


class ChildDiedError(LocalStackError):
    """A process of the stack ended by itself; `log_tail` is the end of what it wrote."""

    def __init__(self, message: str, log_tail: str) -> None:
        super().__init__(message)
        self.log_tail = log_tail


class Child:
    """One process of the stack, behind a tether, writing to its own log."""

    def __init__(
        self, name: str, command: list[str], *, log: Path, environment: Mapping[str, str], lock: int, grace_s: float
    ) -> None:
        self.name = name
        self.log = log
        self.grace_s = grace_s
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            # A session of its own: Ctrl-C in the terminal reaches only the supervisor, which stops in order.
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
        """Raises ChildDiedError with the end of the log."""
        status = self.process.poll()
        if status is not None:
            how = f"was killed by signal {status - 128}" if status > 128 else f"ended with status {status}"
            raise ChildDiedError(f"{self.name} {how}; its log is {self.log}", self.log_tail())

    def log_tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])

    def stop(self) -> None:
        """SIGTERM, then after `grace_s` the end of everything below."""
        self.process.terminate()
        try:
            self.process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it and everything below it at once."""
        self.process.send_signal(tether.PARENT_DIED)
        self.process.wait()

"""What the command line tells in one line instead of a traceback."""

from __future__ import annotations


class ForeseenError(Exception):
    """Root of the errors of the client, the embedded stack, the keys and the demonstration: one sentence each."""

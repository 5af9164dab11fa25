"""The root of the errors that the command line prints in one line instead of a traceback."""

from __future__ import annotations


class ForeseenError(Exception):
    """An error of the client, the embedded stack, the keys or the demonstration, whose message is one sentence."""

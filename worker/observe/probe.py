"""A question to something that may hang, with a bound on the wait: a scrape must end before Prometheus gives it up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE_S = 2.0
"""Prometheus gives a scrape up after ten seconds by default; more than one question may hang."""


class Probe(Generic[T]):
    """Asks `ask_fn`, in one thread at a time. While an answer is outstanding, whoever asks waits for that one."""

    def __init__(self, ask_fn: Callable[[], T]) -> None:
        self._ask_fn = ask_fn
        self._lock = threading.Lock()
        self._latest: Future[T] | None = None

    def begin(self) -> Future[T]:
        """The answer that is on its way."""
        with self._lock:
            if self._latest is None or self._latest.done():
                self._latest = Future()
                threading.Thread(target=self._run, args=[self._latest], name="probe", daemon=True).start()
            return self._latest

    def ask(self, *, timeout_s: float = PATIENCE_S) -> T:
        """The answer. Raises TimeoutError after `timeout_s`, and what `ask_fn` raises."""
        return self.begin().result(timeout_s)

    def _run(self, answer: Future[T]) -> None:
        try:
            answer.set_result(self._ask_fn())
        except BaseException as error:
            answer.set_exception(error)

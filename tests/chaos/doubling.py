"""The fault that every message is delivered twice: whatever anyone puts into the trainers' queue is put there again."""

from __future__ import annotations

import json
import threading
import time
import uuid

from redis import Redis
from redis.exceptions import RedisError

from worker.redis_keys import TRAIN_QUEUE


class Doubler:
    """A thread that listens to all commands that the server gets, and copies each new message."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ours: set[str] = set()
        self.doubled = 0

    def start(self) -> None:
        """Start copying messages."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, and wait for the thread."""
        self._stopped.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._listen()
            except (RedisError, OSError):  # the server was restarted; try again
                time.sleep(0.05)

    def _listen(self) -> None:
        with (
            Redis.from_url(self._url, socket_timeout=None) as listening,
            Redis.from_url(self._url) as sending,
            listening.monitor() as monitor,
        ):
            while not self._stopped.is_set():  # workers say something every second
                name, _, rest = str(monitor.next_command()["command"]).partition(" ")
                queue, _, message = rest.partition(" ")
                if name == "LPUSH" and queue == TRAIN_QUEUE:
                    self._double(sending, json.loads(message))

    def _double(self, sending: Redis, message: dict[str, dict[str, str]]) -> None:
        if message["properties"]["delivery_tag"] in self._ours:
            return
        tag = str(uuid.uuid4())
        self._ours.add(tag)
        message["properties"]["delivery_tag"] = tag
        sending.lpush(TRAIN_QUEUE, json.dumps(message))
        self.doubled += 1

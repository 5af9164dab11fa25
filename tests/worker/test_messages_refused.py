"""What is no JSON is refused unread by a real worker, which goes on working."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from kombu import Connection

from tests.servers import wait_until
from tests.worker.conftest import TRAINER, StartWorker, tiny_spec
from worker.jobs.kinds import JobKind
from worker.jobs.records import RecordStore
from worker.queue.broker import make_app, wake
from worker.queue.messages import JOB_TASK
from worker.redis_keys import TRAIN_QUEUE
from worker.settings import Settings


class _Mark:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_message_in_another_form_than_json_runs_nothing_and_the_next_one_is_served(
    store: RecordStore, start_worker: StartWorker, settings: Settings, tmp_path: Path
) -> None:
    mark = tmp_path / "unpickled"
    worker = start_worker("trainer", TRAINER)
    with Connection(settings.redis_url) as connection, connection.Producer() as producer:
        for content_type in ("application/x-python-serialize", "application/x-yaml"):
            producer.publish(
                pickle.dumps(((_Mark(mark),), {}, {})),
                routing_key=TRAIN_QUEUE,
                declare=[],
                content_type=content_type,
                content_encoding="binary",
                headers={"task": JOB_TASK, "id": "01JD3Z6M3Q4R5S6T7V8W9X0Y1Z", "lang": "py"},
            )
    names = ("pickle", "yaml")
    wait_until(lambda: all(f"untrusted content of type {n}" in worker.log.read_text() for n in names), "refusals")

    record = store.create(JobKind.train, tiny_spec(steps=20))
    with make_app(settings) as app:
        wake(app, record.kind, record.id)
    wait_until(lambda: store.get(record.id).status.is_terminal, "the end of the job")

    assert store.get(record.id).status == "succeeded"
    assert not mark.exists()
    assert store.redis.llen(TRAIN_QUEUE) == 0

"""The Celery application's settings, each with its reason, and the two kinds of messages that are ever sent.

Some of the reasons are decisions (docs/decisions, 0010, 0025 and 0052). The service imports this too, to send tasks by
name: no torch and no task code here.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from worker.jobs.kinds import kind_of
from worker.queue.messages import JOB_TASK, SamplerRequest
from worker.redis_keys import SAMPLE_QUEUE
from worker.settings import Settings


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Celery's configuration."""
    return {
        # JSON only: pickle would let whoever reaches Redis run code in the workers.
        "task_serializer": "json",
        "accept_content": ["json"],
        # Results live in our records and reply lists: Celery's backend has TTLs, leaks subscriptions, knows no asyncio.
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        # A worker takes a message only when it can start it. A multiplier of 1 alone would still hide one job behind
        # a day-long one, from other workers and from autoscalers that read the list's length.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # Acknowledged after the work, so that a message in a dying worker's hands comes back. It comes back too when
        # the work outlasts the visibility timeout; the record's lease, not the message, decides who runs.
        "task_acks_late": True,
        # But not because of a kill: the reaper requeues the job, with its attempt counted, and sends a new message.
        "task_reject_on_worker_lost": False,
        "task_acks_on_failure_or_timeout": True,
        "broker_transport_options": {
            "visibility_timeout": settings.visibility_timeout_s,
            # Look for unacknowledged messages every 10 s; the default throttle of 10 makes it 100 s.
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            # A server that vanished without closing the connection is noticed, in publishing too.
            "socket_timeout": 15,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
        },
        # SIGTERM and Ctrl-C are a warm shutdown: no new message, and the supervisor, told by a shared flag (app.py),
        # has the training checkpoint and go back into the queue at once. REMAP_SIGTERM=SIGQUIT with a soft shutdown
        # would sleep its whole timeout whatever the task does, and then kill the supervisor, not the training.
        "worker_soft_shutdown_timeout": 0,
        # A Redis restart is no reason to stop a training.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Cancel goes through the record, liveness through our own key; both survive a wiped Redis, the control
        # channel's bindings do not.
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        # Ours, in JSON lines (logs.py).
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "enable_utc": True,
    }


def make_app(settings: Settings) -> Celery:
    """A Celery application without tasks of its own."""
    app = Celery("recovery", broker=settings.redis_url, set_as_current=False)
    app.conf.update(celery_settings(settings))
    return app


def wake(app: Celery, kind: str, job_id: str) -> None:
    """Tell the workers that a job waits. Losing this message is repaired by the reaper, doubling it does no harm.

    The message's id is the job's, so that the reaper can see which jobs have one. Nothing is sent for a kind that only
    another version of the program knows: that version sends it. Raises kombu's OperationalError.
    """
    known = kind_of(kind)
    if known is not None:
        _send(app, JOB_TASK, job_id, known.queue, job_id)


def send_request(app: Celery, request: SamplerRequest, queue: str = SAMPLE_QUEUE) -> None:
    """Hand a request to the samplers; dropped unread after its deadline. Raises kombu's OperationalError."""
    # Without defaults, a sampler of an earlier version takes what asks for nothing that it does not know.
    _send(app, request.task, request.model_dump(mode="json", exclude_defaults=True), queue, request.request_id)


def _send(app: Celery, task: str, argument: object, queue: str, task_id: str) -> None:
    retry = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.4, "interval_max": 0.5}
    app.send_task(task, args=[argument], queue=queue, task_id=task_id, ignore_result=True, retry_policy=retry)

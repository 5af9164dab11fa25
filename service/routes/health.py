"""The routes that say whether the process is alive and whether the service can work, and that give its metrics."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from redis.exceptions import RedisError

from service.bodies.health import CheckBody, HealthBody, ReadinessBody, WorkerBody, WorkerListBody
from service.http.errors import Problem, documented
from service.stores import Stores, StoresDependency
from worker.observe.presence import live_workers, worker_reports
from worker.redis_keys import SAMPLE_QUEUE, TRAIN_QUEUE
from worker.storage.artifacts import ArtifactError

router = APIRouter(tags=["operation"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", operation_id="get_health", summary="Is the process alive?")
async def get_health() -> HealthBody:
    """A process that is alive answers, without asking the stores or the workers."""
    return HealthBody()


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz", operation_id="get_readiness", summary="Can jobs and samples be served?", responses=documented(503)
)
def get_readiness(stores: StoresDependency) -> ReadinessBody:
    """Checks Redis, the storage, and that there is a live worker of each kind. A 503 lists the same checks."""
    checks = [
        _check("redis", lambda: _ping_redis(stores)),
        _check("s3", lambda: _ping_storage(stores)),
        _check("trainer", lambda: _require_worker(stores, TRAIN_QUEUE)),
        _check("sampler", lambda: _require_worker(stores, SAMPLE_QUEUE)),
    ]
    missing = [check for check in checks if not check.ok]
    if missing:
        told = "; ".join(f"{check.name}: {check.detail}" for check in missing)
        raise Problem(503, "not-ready", told, extensions={"checks": [check.model_dump() for check in checks]})
    return ReadinessBody(status="ready", checks=checks)


@router.get("/workers", operation_id="list_workers", summary="Which workers are alive?")
def list_workers(stores: StoresDependency) -> WorkerListBody:
    """The answer has each live worker with its version, its GPUs, and how far its clock is ahead of Redis's."""
    reports = worker_reports(stores.records.redis)
    return WorkerListBody(
        workers=[WorkerBody(kind=kind, name=name, **report.model_dump()) for kind, name, report in reports]
    )


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Prometheus series",
    response_class=Response,
    responses={
        200: {
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": 'recovery_jobs{status="queued"} 1.0\n'}
            },
            "description": "The series in the exposition format",
        }
    },
)
def get_metrics(request: Request) -> Response:
    """The series are about the requests of this process, and about jobs, queues and workers as Redis shows them now.

    deploy/METRICS.md explains them.
    """
    registry: CollectorRegistry = request.app.state.registry
    encode_fn, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode_fn(registry), headers={"Content-Type": content_type})


def _check(name: str, check_fn: Callable[[], str]) -> CheckBody:
    try:
        return CheckBody(name=name, ok=True, detail=check_fn())
    except RedisError as error:
        return CheckBody(name=name, ok=False, detail=f"Redis does not answer ({type(error).__name__})")
    except (ArtifactError, LookupError) as error:
        return CheckBody(name=name, ok=False, detail=str(error.args[0]))


def _ping_redis(stores: Stores) -> str:
    stores.records.redis.ping()
    return "answers"


def _ping_storage(stores: Stores) -> str:
    stores.artifacts.ping()
    return f"bucket {stores.artifacts.bucket} answers"


def _require_worker(stores: Stores, queue: str) -> str:
    alive = live_workers(stores.records.redis).get(queue, 0)
    if not alive:
        raise LookupError(f"no worker of queue {queue!r} gives signs of life; start one")
    return f"{alive} alive"

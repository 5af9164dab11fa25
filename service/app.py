"""The HTTP application. Importing this module connects to nothing and reads no environment; the lifespan does both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from service.door.envelope import Envelope
from service.door.limits import RateLimit
from service.door.security import FILES_PREFIX, Door
from service.http import errors
from service.http.fleet import fleet
from service.http.metrics import FleetCollector, RequestMetrics
from service.openapi import complete
from service.routes import classify, datasets, health, jobs, log_density, models, pages, presets, sample, shards
from service.settings import ServiceSettings
from service.stores import Stores
from worker.observe.logs import configure_logging
from worker.observe.series import register_process
from worker.observe.version import version

_DESCRIPTION = """Train energy-based models by diffusion recovery likelihood, draw samples from them, and
score data under them.

Start a job with `POST /jobs/train`, follow it at `/jobs/{id}/events`, then `POST /sample` from its model;
`POST /jobs/calibrate` once, then `POST /log-density`; `POST /classify` by models of labelled data.
Every error is `application/problem+json` (RFC 9457) and says what to do. Where the service has keys, send one as
`Authorization: Bearer KEY`; an operation's security entry names the scope that it needs."""


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """Make an application. Its settings come from the environment when it starts, unless they are given."""
    registry = CollectorRegistry()
    metrics = RequestMetrics(registry)
    register_process(registry, "service")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        known = settings or ServiceSettings()
        configure_logging(settings=known)
        app.state.door = Door(known.keys_file)
        stores = Stores.connect(known)
        collector = FleetCollector(lambda: fleet(stores.records), stores.artifacts.ping)
        registry.register(collector)
        app.state.stores = stores
        app.state.rate_limit = RateLimit(stores.redis, known)
        try:
            yield
        finally:
            registry.unregister(collector)
            await stores.close()

    app = _Application(
        title="recovery-likelihood",
        description=_DESCRIPTION,
        version=version(),
        lifespan=lifespan,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        # FastAPI's own pages load their scripts from a CDN; routes/pages.py serves /docs instead.
        docs_url=None,
        redoc_url=None,
    )
    app.state.registry = registry
    app.state.metrics = metrics
    app.add_middleware(Envelope, metrics=metrics)
    errors.install(app)
    for routes in (jobs, shards, presets, models, datasets, sample, log_density, classify, health, pages):
        app.include_router(routes.router)
    app.mount(FILES_PREFIX, pages.files, name="web")
    return app


class _Application(FastAPI):
    """An application that completes its OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        return complete(super().openapi())


app = create_app()

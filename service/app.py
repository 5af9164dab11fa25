"""The HTTP application. Importing it connects to nothing and reads no environment; the lifespan does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from service import errors
from service.envelope import Envelope
from service.metrics import FleetCollector, RequestMetrics
from service.routes import health, jobs, log_density, models, sample, shards
from service.schemas import LogDensityBody, LogDensityRequestBody, SampleBody
from service.settings import ServiceSettings
from service.stores import Stores
from service.version import version
from worker.logs import configure_logging

_DESCRIPTION = """Train energy-based models by diffusion recovery likelihood, draw samples from them, and
score data under them.

Start a job with `POST /jobs/train`, follow it at `/jobs/{id}/events`, then `POST /sample` from its model;
`POST /jobs/calibrate` once, then `POST /log-density`.
Every error is `application/problem+json` (RFC 9457) and says what to do."""


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """An application of its own; its settings come from the environment when it starts, unless given."""
    registry = CollectorRegistry()
    metrics = RequestMetrics(registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logging()
        stores = Stores.connect(settings or ServiceSettings())
        collector = FleetCollector(stores.fleet)
        registry.register(collector)
        app.state.stores = stores
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
        responses=errors.documented(413, 422, 500, 503),
    )
    app.state.registry = registry
    app.add_middleware(Envelope, metrics=metrics)
    errors.install(app)
    for routes in (jobs, shards, models, sample, log_density, health):
        app.include_router(routes.router)
    return app


class _Application(FastAPI):
    """Adds to the OpenAPI document the schemas that routes refer to by name only."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        schemas = document["components"]["schemas"]
        for model in (errors.ProblemBody, SampleBody, LogDensityRequestBody, LogDensityBody):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        # FastAPI's own body of a 422, which is never sent.
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        return document


app = create_app()

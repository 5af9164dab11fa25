"""Headers for browsers, on every answer whatever it is."""

from __future__ import annotations

import pytest
from fastapi import Response
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import ServiceSettings


@pytest.mark.parametrize("path", ["/healthz", "/jobs", "/nowhere", "/jobs/x", "/metrics", "/openapi.json"])
def test_every_answer_says_how_little_a_browser_may_do_with_it(client: TestClient, path: str) -> None:
    headers = client.get(path).headers

    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in headers


def test_a_route_may_bring_its_own_policy(service_settings: ServiceSettings) -> None:
    app = create_app(service_settings)

    @app.get("/page")
    def page() -> Response:
        return Response("", headers={"Content-Security-Policy": "default-src 'self'", "Cache-Control": "no-cache"})

    with TestClient(app) as client:
        headers = client.get("/page").headers

    assert (headers["Content-Security-Policy"], headers["Cache-Control"]) == ("default-src 'self'", "no-cache")
    assert headers["X-Content-Type-Options"] == "nosniff"

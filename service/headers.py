"""Headers that every answer carries, for the browsers among the clients."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""Data is not a page: nothing in an answer may run or load anything."""
_DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data: https://fastapi.tiangolo.com; "
    "script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'unsafe-inline' https://cdn.jsdelivr.net "
    "https://fonts.googleapis.com; font-src https://fonts.gstatic.com; worker-src blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""The pages that FastAPI makes of the OpenAPI document load their scripts from a CDN."""
_DOCS_PATHS = ("/docs", "/docs/oauth2-redirect", "/redoc")


def secure(headers: MutableHeaders, path: str) -> None:
    """Add what a route has not set itself: a page of its own may bring its own Content-Security-Policy."""
    for name, value in SECURITY_HEADERS:
        headers.setdefault(name.decode(), value.decode())
    headers.setdefault("Content-Security-Policy", _DOCS_POLICY if path in _DOCS_PATHS else _POLICY)
    # Answers depend on the key, and say what was trained: nothing in between keeps them. Pictures say `no-cache`.
    headers.setdefault("Cache-Control", "no-store")

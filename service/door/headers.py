"""Headers that every answer carries, for the browsers among the clients."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders

from service.door.security import is_page

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""Data is not a page: nothing in an answer may run or load anything."""
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""A page runs its own files, draws pictures that it fetched itself, and cannot turn text into HTML (trusted types)."""


def secure(headers: MutableHeaders, path: str) -> None:
    """Add what a route has not set itself: a page of its own may bring its own Content-Security-Policy."""
    for name, value in SECURITY_HEADERS:
        headers.setdefault(name.decode(), value.decode())
    headers.setdefault("Content-Security-Policy", _PAGE_POLICY if is_page(path) else _POLICY)
    # Answers depend on the key, and say what was trained: nothing in between keeps them. Pictures say `no-cache`, which
    # allows keeping but not using unasked; so do the files of a page, which have an ETag.
    headers.setdefault("Cache-Control", "no-cache" if is_page(path) else "no-store")

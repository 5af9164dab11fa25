"""Headers that every answer carries, for clients that are browsers."""

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
"""The policy of answers that are data and not pages: nothing in them may run or load anything."""
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""The policy of a page: it runs its own files, shows pictures that it fetched, and cannot turn text into HTML (trusted
types)."""


def secure(headers: MutableHeaders, path: str) -> None:
    """Add the headers that a route has not set; a page may set a Content-Security-Policy of its own."""
    for name, value in SECURITY_HEADERS:
        headers.setdefault(name.decode(), value.decode())
    headers.setdefault("Content-Security-Policy", _PAGE_POLICY if is_page(path) else _POLICY)
    # Answers depend on the key and tell what was trained, so no cache on the way may keep them. Pictures, and the files
    # of a page, which have an ETag, say `no-cache`: they may be kept, but not used without asking.
    headers.setdefault("Cache-Control", "no-cache" if is_page(path) else "no-store")

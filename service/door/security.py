"""The door: it checks keys and scopes before any of a request's body is read.

Once there is a key, every request needs one. Without keys only this machine is served: connections that arrived at a
loopback address, under a name that no foreign web page can have (a page could otherwise point a name of its own at
127.0.0.1 and read from here).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import structlog
from starlette.datastructures import Headers
from starlette.types import Scope as Connection

from service.door.keys import Key, KeyFile, KeysError, Scope, matching
from service.http.errors import Problem

PAGES = frozenset({"/", "/docs"})
FILES_PREFIX = "/web"
"""The path below which the files of the pages are."""
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", *PAGES})
"""The paths that are served to everybody: probes carry no keys, what this service can do is public, and a page has to
ask for the key."""
_SAMPLE_PATHS = frozenset({"/sample", "/log-density", "/classify"})
_REALM = 'Bearer realm="recovery"'

log = structlog.get_logger()


@dataclass(frozen=True)
class Caller:
    """The sender of a request: a key, or without keys an address of this machine."""

    identity: str
    """The name of the caller in logs and in the Redis keys of its limits; it is never text of the client's choice."""
    key: Key | None = None


def required_scope(method: str, path: str) -> Scope | None:
    """Return the scope that a request needs, or None when it needs no key.

    A request that is not listed here changes something and needs `train`.
    """
    if is_open(path):
        return None
    if method in ("GET", "HEAD", "OPTIONS"):
        return Scope.read
    if method == "DELETE":
        return Scope.admin
    return Scope.sample if path in _SAMPLE_PATHS else Scope.train


def is_open(path: str) -> bool:
    """Say whether a path is served to everybody, and without a rate limit."""
    return path in OPEN_PATHS or is_page(path)


def is_page(path: str) -> bool:
    """Say whether a path is a page for people, or one of a page's files."""
    return path in PAGES or path.startswith(f"{FILES_PREFIX}/")


class Door:
    """The check that lets requests in by the keys of one file, or without keys.

    The file is read anew when it changes, so that a revoked key stops working.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the keys. Raises KeysError for a file that cannot be read."""
        self._file = KeyFile(path) if path is not None else None
        self._signature: tuple[int, ...] | None = None
        self._keys: tuple[Key, ...] = ()
        self.needs_keys = False
        """Whether requests need a key. Once true it stays true: losing the last key, or the file, opens nothing."""
        self._refresh()

    def admit(self, connection: Connection) -> Caller:
        """Return the caller of a request. Raises Problem 401 or 403, and 503 when the keys cannot be read."""
        address = _address(connection)
        scope = required_scope(connection["method"], connection["path"])
        if scope is None:
            return Caller(address)
        try:
            self._refresh()
        except KeysError as error:
            log.error("keys_unreadable", detail=str(error))
            raise Problem(503, "keys-unavailable", "the server cannot read its keys; its log says why") from None
        headers = Headers(scope=connection)
        if not self.needs_keys:
            _require_local(connection, headers)
            _require_own_page(connection["method"], headers)
            return Caller(address)
        key = self._key(headers)
        if not key.allows(scope):
            raise _missing_scope(key, scope)
        return Caller(f"key:{key.id}", key)

    def _key(self, headers: Headers) -> Key:
        kind, _, text = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not text.strip():
            raise _unauthorized("this service needs a key; send it as `Authorization: Bearer KEY`", _REALM)
        key = matching(self._keys, text.strip())
        if key is None:
            raise _unauthorized(
                "the key is not known here, or was revoked; ask for another (`recovery keys create`)",
                f'{_REALM}, error="invalid_token"',
            )
        return key

    def _refresh(self) -> None:
        if self._file is None:
            return
        try:
            found = self._file.path.stat()
            signature: tuple[int, ...] | None = (found.st_mtime_ns, found.st_ino, found.st_size)
        except FileNotFoundError:
            signature = None
        if signature != self._signature:
            self._keys = self._file.read()
            self._signature = signature
        self.needs_keys = self.needs_keys or bool(self._keys)


def require_keys(host: str, path: Path | None) -> None:
    """Refuse an address that others can reach while there is no key. Raises KeysError saying how to make one."""
    if is_loopback(host) or (path is not None and KeyFile(path).read()):
        return
    if path is None:
        raise KeysError(
            f"refusing to listen on {host} without keys: set RECOVERY_KEYS_FILE, make a key with "
            "`recovery keys create`, and start again; or listen on 127.0.0.1"
        )
    raise KeysError(
        f"refusing to listen on {host} without keys: make one with `recovery keys create --file {path}`, "
        "and start again; or listen on 127.0.0.1"
    )


def is_loopback(host: str) -> bool:
    """Say whether an address, or a name such as `localhost`, can be reached from this machine only."""
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _require_local(connection: Connection, headers: Headers) -> None:
    """Refuse a request from another machine. Raises Problem 403.

    This protects the service however it was started, even if nobody checked its address beforehand.
    """
    arrived_at = str((connection.get("server") or ("", None))[0])
    name = headers.get("host", "").lower()
    name = name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]
    if _is_foreign(arrived_at) or _is_foreign(name):
        raise Problem(
            403,
            "keys-needed",
            "without keys this service answers its own machine only, at 127.0.0.1 or localhost; "
            "make a key on the server with `recovery keys create`",
        )


def _require_own_page(method: str, headers: Headers) -> None:
    """Refuse a request that another web page had a browser send. Raises Problem 403.

    Where no key is needed, any web page that is open here could otherwise have the browser change something. Browsers
    say where a request comes from, programs do not; and browsers give no page what it reads from another site.
    """
    if method in ("GET", "HEAD", "OPTIONS"):
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    own = (
        site in ("same-origin", "none") if site else origin is None or origin.partition("//")[2] == headers.get("host")
    )
    if not own:
        raise Problem(
            403,
            "foreign-page",
            "without keys this service takes orders from programs and from its own page only, not from another web "
            "page; make a key on the server with `recovery keys create`",
        )


def _is_foreign(host: str) -> bool:
    """Say whether a host is not this machine.

    A name without a dot belongs to nobody on the internet: it is a socket file, a container, a test's server.
    """
    return not is_loopback(host) and ("." in host or ":" in host) and not host.startswith("/")


def _address(connection: Connection) -> str:
    """Return the address that a request comes from, or "unknown" for text that is no address.

    A proxy's header can hold any text.
    """
    try:
        return f"address:{ipaddress.ip_address((connection.get('client') or ('', 0))[0])}"
    except ValueError:
        return "address:unknown"


def _unauthorized(detail: str, challenge: str) -> Problem:
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": challenge})


def _missing_scope(key: Key, scope: Scope) -> Problem:
    has = ", ".join(key.scopes)
    return Problem(
        403,
        "missing-scope",
        f"key {key.id} lacks the scope `{scope}` (it has {has}); use a key that has it",
        headers={"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{scope}"'},
    )

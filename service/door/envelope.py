"""The middleware around every request: its id, its caller, limits, metrics, and an answer when the code below fails.

Everything here is decided from the head of a request, before any of its body is read.
"""

from __future__ import annotations

import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.door.headers import secure
from service.door.limits import RateLimit
from service.door.security import Door, is_open
from service.http.errors import Problem, problem_of
from service.http.metrics import RequestMetrics, route_template
from service.stores import Stores
from worker.ids import new_id
from worker.observe.redaction import redact

REQUEST_ID = "X-Request-ID"
# The request id that a client sends is kept if it can stand in a log line as it is.
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")

log = structlog.get_logger()


class Envelope:
    """ASGI middleware, the outermost of the application's own."""

    def __init__(self, app: ASGIApp, *, metrics: RequestMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        with structlog.contextvars.bound_contextvars(request_id=exchange.request_id):
            try:
                with self.metrics.in_progress.track_inprogress():
                    await exchange.run(self.app)
            finally:
                self.metrics.observe(
                    scope["method"], route_template(scope), exchange.status, time.perf_counter() - exchange.began_at
                )


class _Exchange:
    """One request on its way in and its answer on its way out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.headers = Headers(scope=scope)
        self.status = 500
        self.started = False
        self.began_at = time.perf_counter()
        given = self.headers.get(REQUEST_ID, "")
        self.request_id = given if _ACCEPTABLE_ID.match(given) and redact(given) == given else new_id()
        self.received_bytes = 0
        self.answer_headers: dict[str, str] = {}
        state = scope["app"].state
        self.door: Door = state.door
        self.rate_limit: RateLimit = state.rate_limit
        stores: Stores = state.stores
        self.limit_bytes = stores.settings.body_limit_bytes(scope["path"])

    async def run(self, app: ASGIApp) -> None:
        """Serve the request, and answer it as a problem if the code below fails."""
        try:
            await self._admit()
            self._refuse_announced_size()
            await app(self.scope, self.receive, self.send)
        except Exception as error:
            if not isinstance(error, Problem):
                log.exception("request failed", path=self.scope["path"], method=self.scope["method"])
            if (
                self.started
            ):  # it is too late for another answer: the connection must break, or this one would look whole
                raise
            request = Request(self.scope)
            await problem_of(error, request).response(self.scope["path"])(self.scope, self._receive, self.send)

    async def _admit(self) -> None:
        """Let the caller in. Raises Problem 401, 403, 429 or 503."""
        caller = self.door.admit(self.scope)
        self.scope.setdefault("state", {})["caller"] = caller
        if caller.key is not None:
            structlog.contextvars.bind_contextvars(key=caller.key.id)
        if not is_open(self.scope["path"]):
            self.answer_headers = await self.rate_limit.count(caller)

    async def receive(self) -> Message:
        """Return the next piece of the request.

        Raises Problem for a body that is longer than it may be, whether or not its length was announced.
        """
        message = await self._receive()
        if message["type"] == "http.request":
            self.received_bytes += len(message.get("body", b""))
            if self.received_bytes > self.limit_bytes:
                raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        """Send the next piece of the answer, and add the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self.request_id
            for name, value in self.answer_headers.items():
                headers.setdefault(name, value)
            secure(headers, self.scope["path"])
        await self._send(message)

    def _refuse_announced_size(self) -> None:
        announced = self.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self.limit_bytes:
            raise self._too_large()

    def _too_large(self) -> Problem:
        return Problem(
            413,
            "content-too-large",
            f"the request has more than {self.limit_bytes} bytes, all that is accepted here; send less",
            headers={"Connection": "close"},  # the part that was not read must not be taken for the next request
        )

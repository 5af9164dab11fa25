"""Answers to input that the HTTP parser refuses before there is a request, such as endless headers: also problems."""

from __future__ import annotations

import http
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.door.headers import SECURITY_HEADERS
from service.http.errors import Problem
from worker.ids import new_id

_REFUSALS = {
    431: ("header-fields-too-large", "the request line and headers are too long together; send fewer or shorter ones"),
    501: ("not-implemented", "of transfer encodings only `chunked` is understood; send Content-Length, or chunks"),
}
_BAD_REQUEST = ("bad-request", "this is no HTTP/1.1 request; check the client, or what sits between it and the service")


class ProblemProtocol(H11Protocol):
    """uvicorn's protocol on h11, which answers with problem+json where uvicorn would answer in plain text."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer with a problem. This is called while the parser's error is handled, in which h11 says the status."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        kind, detail = _REFUSALS.get(status, _BAD_REQUEST)
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # amid an answer, only breaking off can say that it is not whole
            return
        answer = Problem(status if status in _REFUSALS else 400, kind, detail).response("/")
        headers = [
            *answer.raw_headers,
            *SECURITY_HEADERS,
            (b"x-request-id", new_id().encode()),
            (b"connection", b"close"),
        ]
        status_code = answer.status_code
        reason = http.HTTPStatus(status_code).phrase.encode()
        for event in (
            h11.Response(status_code=status_code, headers=headers, reason=reason),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

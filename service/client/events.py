"""A job's event stream as a client reads it: after a broken connection it goes on from the last event it has seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypedDict

import httpx2

from service.client.call import ClientError, quoted

_MOST_FAILURES = 5
_PAUSE_S = 0.2


class Event(TypedDict):
    """One event of a job, as the service tells it."""

    id: str
    """The id of the event, which orders events and which `after` takes."""
    type: str
    """What happened. GET /openapi.json lists the types, and the data of each, under EventBody."""
    at: str
    data: dict[str, Any]


@dataclass
class EventFeed:
    """The position of a reader in the stream of a job's events."""

    job_id: str
    last_id: str | None = None
    failures: int = 0
    """The number of connections that broke in a row, without an event between them."""

    @property
    def path(self) -> str:
        """The path of the stream."""
        return f"/jobs/{quoted(self.job_id)}/events"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that make the stream go on after the last event."""
        return {"Accept": "text/event-stream", **({"Last-Event-ID": self.last_id} if self.last_id else {})}

    def read(self, line: str) -> Event | None:
        """Return the event in a line of the stream, or None. Raises httpx2.ReadError when the server has to stop."""
        # The data of an event, on one line, hold the whole event with its id and type.
        if not line.startswith("data: "):
            return None
        event: Event = json.loads(line.removeprefix("data: "))
        if "id" not in event:  # the server says why it ends the stream
            raise httpx2.ReadError(str(event["detail"]))
        self.last_id, self.failures = event["id"], 0
        return event

    def pause_after_failure_s(self, url: str) -> float:
        """Return the seconds to wait before the stream is opened again. Raises ClientError after too many failures."""
        self.failures += 1
        if self.failures >= _MOST_FAILURES:
            raise ClientError(
                f"the event stream of job {self.job_id} broke {self.failures} times; is {url} still there?"
            )
        return _PAUSE_S * self.failures


def is_sign_of_life(line: str) -> bool:
    """Say whether the line carries no event and only shows that the server is alive."""
    return line.startswith(":")

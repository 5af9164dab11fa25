"""A job's event stream as a client reads it: from the last event it has seen, through broken connections."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypedDict

import httpx2

from service.client.call import ClientError, quoted

_MOST_FAILURES = 5
_PAUSE_S = 0.2


class Event(TypedDict):
    """One event of a job."""

    id: str
    """orders events; `after` takes it"""
    type: str
    """what happened; GET /openapi.json says under EventBody which types there are and what the data of each are"""
    at: str
    data: dict[str, Any]


@dataclass
class EventFeed:
    """The position of a reader in the stream of a job's events."""

    job_id: str
    last_id: str | None = None
    failures: int = 0
    """broken connections in a row, without an event between them"""

    @property
    def path(self) -> str:
        """The path of the stream."""
        return f"/jobs/{quoted(self.job_id)}/events"

    @property
    def headers(self) -> dict[str, str]:
        """The headers with which the stream goes on after the last event."""
        return {"Accept": "text/event-stream", **({"Last-Event-ID": self.last_id} if self.last_id else {})}

    def read(self, line: str) -> Event | None:
        """The event in a line of the stream, if it is one. Raises httpx2.ReadError when the server must stop."""
        # Every event carries itself, id and type included, in its data, on one line.
        if not line.startswith("data: "):
            return None
        event: Event = json.loads(line.removeprefix("data: "))
        if "id" not in event:  # the server's last words
            raise httpx2.ReadError(str(event["detail"]))
        self.last_id, self.failures = event["id"], 0
        return event

    def pause_after_failure_s(self, url: str) -> float:
        """Seconds to wait before the stream is opened again. Raises ClientError after too many failures."""
        self.failures += 1
        if self.failures >= _MOST_FAILURES:
            raise ClientError(
                f"the event stream of job {self.job_id} broke {self.failures} times; is {url} still there?"
            )
        return _PAUSE_S * self.failures


def is_sign_of_life(line: str) -> bool:
    """Whether the line carries no event and only shows that the server is there."""
    return line.startswith(":")

"""The blocking client, whose methods return when the answer is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import httpx2

from service.client.address import Address
from service.client.call import Call, ClientError, Json, Pause, Send, refusal
from service.client.calls import Calls
from service.client.events import Event, EventFeed, is_sign_of_life
from service.client.handles import JobCalls, ModelCalls
from service.client.progress import Bar, progress_console
from service.client.requests import parsed

T = TypeVar("T")


class Job(JobCalls):
    """A job as the service last described it, with methods that act on it."""

    _client: Recovery

    def perform(self, call: Call[T]) -> T:
        """Send the requests of a call over the client's connections."""
        return self._client.perform(call)

    def events(self, *, after: str | None = None) -> Iterator[Event]:
        """Yield everything that happens in the job until it ends."""
        return self._client.events(self.id, after=after)

    def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> Job:
        """Wait for the job's end, with a progress bar if wanted, and return the job.

        Raises JobFailedError unless it succeeded, and ClientError when `timeout_s` seconds were not enough (without a
        progress bar).
        """
        if progress:
            with Bar(progress_console()) as bar:
                for event in self.events():
                    bar.show(event)
        self.perform(self.until_ended(timeout_s))
        self.require_success()
        return self

    def model(self) -> Model:
        """Return the model that the job trains or works on."""
        return self._client.model(str(self.model_id))


class Model(ModelCalls[Job]):
    """A model as the service last described it, with methods that sample and score with it."""

    _client: Recovery

    def perform(self, call: Call[T]) -> T:
        """Send the requests of a call over the client's connections."""
        return self._client.perform(call)


class Recovery(Address, Calls[Job, Model]):
    """The blocking client of the service at one address, with a key if the service asks for one."""

    def __init__(self, url: str | None = None, *, api_key: str | None = None) -> None:
        """Prepare connections; an absent address or key is looked up as service.client.address says.

        Raises ClientError for a URL that is no address of a service.
        """
        super().__init__(url, api_key)
        try:
            self._http = httpx2.Client(**self.http_options)
        except httpx2.InvalidURL as error:
            raise self.error_of(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the client's connections."""
        self._http.close()

    def job_of(self, body: Json) -> Job:
        """Return an answer as a job that can be waited for, cancelled and resumed."""
        job = parsed(Job, body)
        job._client = self
        return job

    def model_of(self, body: Json) -> Model:
        """Return an answer as a model that can be sampled and asked for densities."""
        model = parsed(Model, body)
        model._client = self
        return model

    def events(
        self, job_id: str, *, after: str | None = None, idle_fn: Callable[[], None] | None = None
    ) -> Iterator[Event]:
        """Yield everything that happens in a job until it ends. A broken stream is opened again.

        `idle_fn` is called every few seconds while nothing happens.
        """
        feed = EventFeed(job_id, after)
        while True:
            try:
                with self._http.stream("GET", feed.path, headers=feed.headers) as answer:
                    if answer.is_error:
                        answer.read()
                        raise refusal(answer)
                    for line in answer.iter_lines():
                        if idle_fn is not None and is_sign_of_life(line):
                            idle_fn()
                        if (event := feed.read(line)) is not None:
                            yield event
                return
            except httpx2.TransportError:
                time.sleep(feed.pause_after_failure_s(self.url))

    def perform(self, call: Call[T]) -> T:
        """Send the requests of a call over the client's connections."""
        try:
            wanted = next(call)
            while True:
                try:
                    reply = self._do(wanted)
                except ClientError as error:
                    wanted = call.throw(error)
                else:
                    wanted = call.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            call.close()

    def _do(self, wanted: Send | Pause) -> httpx2.Response | None:
        if isinstance(wanted, Pause):
            time.sleep(wanted.seconds)
            return None
        try:
            answer = self._http.request(wanted.method, wanted.path, **wanted.options)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise self.error_of(error) from None
        if answer.is_error:
            raise refusal(answer)
        return answer

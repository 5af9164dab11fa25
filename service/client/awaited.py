"""The client for asyncio, the twin of blocking.py in the same order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from service.client.address import Address
from service.client.call import Call, ClientError, Json, Pause, Send, refusal
from service.client.calls import Calls
from service.client.events import Event, EventFeed
from service.client.handles import JobCalls, ModelCalls
from service.client.progress import Bar, progress_console
from service.client.requests import parsed

T = TypeVar("T")


class AsyncJob(JobCalls):
    """A job as the service last described it, with methods that act on it."""

    _client: AsyncRecovery

    async def perform(self, call: Call[T]) -> T:
        """Send the requests of a call over the client's connections."""
        return await self._client.perform(call)

    def events(self, *, after: str | None = None) -> AsyncIterator[Event]:
        """Yield everything that happens in the job until it ends."""
        return self._client.events(self.id, after=after)

    async def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> AsyncJob:
        """Wait for the job's end, with a progress bar if wanted, and return the job.

        Raises JobFailedError unless it succeeded, and ClientError when `timeout_s` seconds were not enough (without a
        progress bar).
        """
        if progress:
            with Bar(progress_console()) as bar:
                async for event in self.events():
                    bar.show(event)
        await self.perform(self.until_ended(timeout_s))
        self.require_success()
        return self

    def model(self) -> Coroutine[Any, Any, AsyncModel]:
        """Return the model that the job trains or works on."""
        return self._client.model(str(self.model_id))


class AsyncModel(ModelCalls[AsyncJob]):
    """A model as the service last described it, with methods that sample and score with it."""

    _client: AsyncRecovery

    async def perform(self, call: Call[T]) -> T:
        """Send the requests of a call over the client's connections."""
        return await self._client.perform(call)


class AsyncRecovery(Address, Calls[AsyncJob, AsyncModel]):
    """The client for asyncio: every method is awaited, and events are read with `async for`."""

    def __init__(self, url: str | None = None, *, api_key: str | None = None) -> None:
        """Prepare connections; an absent address or key is looked up as service.client.address says.

        Raises ClientError for a URL that is no address of a service.
        """
        super().__init__(url, api_key)
        try:
            self._http = httpx2.AsyncClient(**self.http_options)
        except httpx2.InvalidURL as error:
            raise self.error_of(error) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client's connections."""
        await self._http.aclose()

    def job_of(self, body: Json) -> AsyncJob:
        """Return an answer as a job that can be awaited, cancelled and resumed."""
        job = parsed(AsyncJob, body)
        job._client = self
        return job

    def model_of(self, body: Json) -> AsyncModel:
        """Return an answer as a model that can be sampled and asked for densities."""
        model = parsed(AsyncModel, body)
        model._client = self
        return model

    async def events(self, job_id: str, *, after: str | None = None) -> AsyncIterator[Event]:
        """Yield everything that happens in a job until it ends. A broken stream is opened again."""
        feed = EventFeed(job_id, after)
        while True:
            try:
                async with self._http.stream("GET", feed.path, headers=feed.headers) as answer:
                    if answer.is_error:
                        await answer.aread()
                        raise refusal(answer)
                    async for line in answer.aiter_lines():
                        if (event := feed.read(line)) is not None:
                            yield event
                return
            except httpx2.TransportError:
                await asyncio.sleep(feed.pause_after_failure_s(self.url))

    async def perform(self, call: Call[T]) -> T:
        """Send the requests of a call over the client's connections."""
        try:
            wanted = next(call)
            while True:
                try:
                    reply = await self._do(wanted)
                except ClientError as error:
                    wanted = call.throw(error)
                else:
                    wanted = call.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            call.close()

    async def _do(self, wanted: Send | Pause) -> httpx2.Response | None:
        if isinstance(wanted, Pause):
            await asyncio.sleep(wanted.seconds)
            return None
        try:
            answer = await self._http.request(wanted.method, wanted.path, **wanted.options)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise self.error_of(error) from None
        if answer.is_error:
            raise refusal(answer)
        return answer

"""Calls: what a client asks, apart from how it is sent. A call is a generator of requests that a sender drives.

    @described
    def job(self, job_id: str) -> Call[Job]:
        reply = yield from answered(Send("GET", f"/jobs/{job_id}"))
        return Job(**reply.json())

On a client that is a `SyncSender`, `client.job(id)` returns a Job; on an `AsyncSender` it is awaited.
"""

from __future__ import annotations

import functools
import urllib.parse
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

import httpx2

from service.foreseen import ForeseenError

Json = dict[str, Any]

_PAUSES_S = (0.2, 1.0, 3.0)
_LONGEST_PAUSE_S = 60.0
"""A service that asks for a longer pause than this is an error at once."""
_IN_FLIGHT = "urn:recovery:problem:request-in-flight"
_TOO_MANY = 429
_AWAY = (502, 503)


class ClientError(ForeseenError):
    """The service could not be asked, or it refused. The one sentence says what to do."""


class UnreachableError(ClientError):
    """Nothing answers at the address."""


class BrokenOffError(ClientError):
    """The connection broke before the answer was there; what was asked for may have been done."""


class JobFailedError(ClientError):
    """A job that was waited for did not succeed."""


class RefusedError(ClientError):
    """The service answered with a problem (RFC 9457)."""

    def __init__(self, problem: Json, retry_after_s: float | None = None) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or problem))
        self.problem = problem
        self.status = int(problem.get("status", 0))
        self.retry_after_s = retry_after_s
        """The seconds that the service wants to pass before the next request, or None when it names none."""


@dataclass(frozen=True)
class Send:
    """One request that a call wants sent."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    options: Json = field(default_factory=dict)
    """The keyword arguments of the request as httpx2 takes them: json, params, headers, files, data, timeout."""
    repeatable: bool = False
    """Whether asking twice does no harm. Such a request is sent again when the connection breaks, or when the service
    is busy or away."""


@dataclass(frozen=True)
class Pause:
    """A time that a call wants to let pass before its next request."""

    seconds: float


P = ParamSpec("P")
T = TypeVar("T")
Call = Generator[Send | Pause, Any, T]
"""A generator that yields what is to be done, is sent the answer (httpx2.Response; None after a pause), and returns the
result of the call."""


def answered(request: Send) -> Call[httpx2.Response]:
    """Return the answer to a request, which is sent again where that is safe. Raises ClientError."""
    for pause_s in _PAUSES_S if request.repeatable else ():
        try:
            reply: httpx2.Response = yield request
            return reply
        except ClientError as error:
            pause = _pause_before_another(error, pause_s)
            if pause is None:
                raise
        yield pause
    reply = yield request
    return reply


def _pause_before_another(error: ClientError, pause_s: float) -> Pause | None:
    """Return the pause before the request is sent again, or None when another try would not help."""
    match error:
        case BrokenOffError():
            return Pause(pause_s)
        case RefusedError(status=status, retry_after_s=wanted) if status == _TOO_MANY:
            wanted = pause_s if wanted is None else wanted
            return Pause(wanted) if wanted <= _LONGEST_PAUSE_S else None
        case RefusedError(status=status, problem=problem) if status in _AWAY or problem.get("type") == _IN_FLIGHT:
            return Pause(pause_s)
        case _:
            return None


class SyncSender(Protocol):
    """A client whose methods return the result of a call."""

    def perform(self, call: Call[T]) -> T:
        """Do everything that a call asks for, and return its result."""


class AsyncSender(Protocol):
    """A client whose methods are awaited for the result of a call."""

    async def perform(self, call: Call[T]) -> T:
        """Do everything that a call asks for, and return its result."""


class described(Generic[P, T]):  # noqa: N801 # used as a decorator, like property
    """A decorator for a method that is written once as a call.

    A SyncSender performs the call at once; with an AsyncSender the method is awaited.
    """

    def __init__(self, describe_fn: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self._describe_fn = describe_fn
        self.__doc__ = describe_fn.__doc__

    @overload
    def __get__(self, owner: None, kind: type[Any]) -> Callable[Concatenate[Any, P], Call[T]]: ...
    @overload
    def __get__(self, owner: SyncSender, kind: type[Any]) -> Callable[P, T]: ...
    @overload
    def __get__(self, owner: AsyncSender, kind: type[Any]) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, owner: Any, kind: type[Any]) -> Callable[..., Any]:
        if owner is None:
            return self._describe_fn

        @functools.wraps(self._describe_fn)
        def perform(*args: P.args, **options: P.kwargs) -> Any:
            return owner.perform(self._describe_fn(owner, *args, **options))

        # help() and completion in notebooks show this signature; `self` is bound and left out.
        perform.__signature__ = _bound_signature(self._describe_fn)  # type: ignore[attr-defined]
        return perform


@functools.cache
def _bound_signature(describe_fn: Callable[..., Any]) -> Any:
    import inspect

    signature = inspect.signature(describe_fn)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def quoted(text: str) -> str:
    """Quote a text as one segment of a path, whatever characters it holds."""
    return urllib.parse.quote(text, safe="")


def given(**options: Any) -> Json:
    """Return the options that are not None; for the others the service uses its defaults."""
    return {name: value for name, value in options.items() if value is not None}


def refusal(answer: httpx2.Response) -> RefusedError:
    """Return the error that an answer with an error status stands for. The answer's body must have been read."""
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"status": answer.status_code, "detail": f"{answer.url} answered {answer.status_code}"}
    seconds = answer.headers.get("Retry-After", "")
    return RefusedError(problem, float(seconds) if seconds.isdecimal() else None)

"""Every error that a client can meet, as one kind of body: RFC 9457 `application/problem+json`, saying what to do.

Errors of the packages below are translated here and nowhere else.
"""

from __future__ import annotations

import http
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kombu.exceptions import OperationalError
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from model.errors import ConfigError, DataError, DataTooLarge
from worker.ids import InvalidId
from worker.jobs.record import IllegalTransition, JobNotFound, NeedsDeleted
from worker.observe.redaction import redact_all
from worker.storage.artifacts import ArtifactDamaged, ArtifactMissing, StorageUnavailable

PROBLEM_MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER_S = "5"

log = structlog.get_logger()


class FieldProblem(BaseModel):
    """A mistake in one field of a request."""

    location: list[str | int] = Field(
        description="Path to the field, outermost name first", examples=[["body", "steps"]]
    )
    message: str = Field(description="What was expected", examples=["Input should be greater than or equal to 1"])
    type: str = Field(description="Kind of mistake, a name that does not change", examples=["greater_than_equal"])


class ProblemBody(BaseModel):
    """The body of every error: RFC 9457 problem details."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:recovery:problem:unknown-job",
                    "title": "Unknown job",
                    "status": 404,
                    "detail": "there is no job 01JD3Z6M3Q4R5S6T7V8W9X0Y1Z; GET /jobs lists them",
                    "instance": "/jobs/01JD3Z6M3Q4R5S6T7V8W9X0Y1Z",
                }
            ]
        }
    )

    type: str = Field(description="Kind of problem, as a URN that does not change and that programs compare")
    title: str = Field(description="Kind of problem in words")
    status: int = Field(description="HTTP status of the answer")
    detail: str = Field(description="What was wrong this time, and what to do")
    instance: str = Field(description="Path of the request")
    errors: list[FieldProblem] | None = Field(None, description="In a 422, every field that was wrong")


class Problem(HTTPException):
    """An answer other than success, which code raises anywhere while a request is served.

    It is an HTTPException, because FastAPI turns whatever else is raised while it reads a body into a 400.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldProblem] | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.kind = kind
        self.errors = errors
        self.extensions = dict(extensions or {})

    @property
    def title(self) -> str:
        """The kind of problem in words."""
        return self.kind.replace("-", " ").capitalize()

    def response(self, path: str) -> JSONResponse:
        """Return the answer to a request for that path."""
        body = ProblemBody(
            type=f"urn:recovery:problem:{self.kind}",
            title=self.title,
            status=self.status_code,
            detail=self.detail,
            instance=path,
            errors=list(self.errors) if self.errors is not None else None,
        )
        return JSONResponse(
            redact_all(body.model_dump(exclude_none=True) | self.extensions),
            self.status_code,
            headers=self.headers,
            media_type=PROBLEM_MEDIA_TYPE,
        )


def field_problem(location: Sequence[str | int], message: str) -> Problem:
    """Return a 422 about one field that the schema allows and the application refuses."""
    one = FieldProblem(location=list(location), message=message, type="value_error")
    return Problem(422, "invalid-request", f"{'.'.join(map(str, location))}: {message}", errors=[one])


def not_acceptable(offered: Sequence[str], reason: str = "") -> Problem:
    """Return a 406 that names the media types on offer."""
    return Problem(406, "not-acceptable", f"{reason}set the Accept header to one of {', '.join(offered)}")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of a route's own errors; openapi.py adds those that any route can answer."""
    return {
        status: {
            "description": http.HTTPStatus(status).phrase,
            "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Have the application answer every error of every route as a problem."""
    for kind in (
        Problem,
        HTTPException,
        RequestValidationError,
        ConfigError,
        DataError,
        InvalidId,
        JobNotFound,
        IllegalTransition,
        NeedsDeleted,
        ArtifactMissing,
        ArtifactDamaged,
        StorageUnavailable,
        RedisError,
        OperationalError,
    ):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    return problem_of(error, request).response(request.url.path)


def problem_of(error: Exception, request: Request) -> Problem:
    """Return the problem that tells a client about `error`; an error that nobody foresaw is a 500 without details."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _validation_problem(error)
        case HTTPException():
            return _http_problem(error, request)
        case JobNotFound():
            return Problem(404, "unknown-job", f"{error}; GET /jobs lists them")
        case InvalidId():
            return Problem(404, "unknown-id", f"{error}; GET /jobs and GET /models list what there is")
        case IllegalTransition():
            return Problem(409, "illegal-transition", str(error))
        case NeedsDeleted():
            return Problem(404, "deleted", f"{error}; GET /models lists what there is")
        case ArtifactMissing():
            return Problem(404, "unknown-artifact", f"{error}; GET /models lists what there is")
        case DataTooLarge():
            return Problem(413, "dataset-too-large", str(error))
        case DataError():
            return Problem(422, "invalid-dataset", str(error))
        case ConfigError():
            return field_problem(["body"], str(error))
        case StorageUnavailable():
            return _away("storage-unavailable", f"the S3 storage is away: {error}")
        case RedisError() | OperationalError():
            # The error's message is left out, because it may quote the URL with the password.
            return _away("redis-unavailable", f"Redis is away ({type(error).__name__})")
        case _:
            return Problem(
                500,
                "internal-error",
                "the server made a mistake; its log has the details under this answer's X-Request-ID",
            )


def _away(kind: str, what: str) -> Problem:
    log.warning(kind, detail=what)
    detail = f"{what}; try again in a few seconds, GET /readyz shows what is missing"
    return Problem(503, kind, detail, headers={"Retry-After": _RETRY_AFTER_S})


def _validation_problem(error: RequestValidationError) -> Problem:
    fields = _without_branches(
        [FieldProblem(location=list(one["loc"]), message=_plain(one), type=one["type"]) for one in error.errors()]
    )
    told = "; ".join(f"{'.'.join(map(str, field.location))}: {field.message}" for field in fields[:5])
    more = f"; and {len(fields) - 5} more" if len(fields) > 5 else ""
    return Problem(422, "invalid-request", f"{told}{more}; /docs says what is expected", errors=fields)


def _without_branches(fields: Sequence[FieldProblem]) -> list[FieldProblem]:
    """Return one problem for each field.

    Where a value may be one of several kinds, pydantic complains for each of them. What lies deepest is about the kind
    that was meant; complaints about the same field are joined.
    """
    joined: dict[tuple[str | int, ...], FieldProblem] = {}
    for field in fields:
        place = tuple(part for part in field.location if not _is_branch(part))
        known = joined.get(place)
        message = field.message if known is None else f"{known.message}; or: {field.message}"
        joined[place] = FieldProblem(location=list(place), message=message, type=field.type)
    return [
        field
        for place, field in joined.items()
        if not any(len(other) > len(place) and other[: len(place)] == place for other in joined)
    ]


def _is_branch(part: str | int) -> bool:
    """Whether a part of a location names a kind of value, such as `CompositionBody`, and no field."""
    return isinstance(part, str) and (
        part in ("str", "int") or part.startswith("constrained-") or "[" in part or part.endswith("Body")
    )


def _plain(error: Mapping[str, Any]) -> str:
    """Return the message without the prefix that pydantic puts before a validator's own words.

    The message about broken JSON also gets the place where the parser stopped.
    """
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{message} ({error['ctx']['error']})" if error["type"] == "json_invalid" and "ctx" in error else message


def _http_problem(error: HTTPException, request: Request) -> Problem:
    details = {
        400: f"{str(error.detail).rstrip('.')}; the body must be whole, and what its Content-Type says: "
        "JSON in UTF-8, not nested too deep, or a form",
        404: f"no route {request.url.path}; /docs lists all calls",
        405: f"{request.method} is not offered on {request.url.path}; /docs lists all calls",
    }
    phrase = http.HTTPStatus(error.status_code).phrase
    known = {404: "unknown-route"}
    kind = known.get(error.status_code, phrase.lower().replace(" ", "-"))
    headers = _allowed(request) if error.status_code == 405 else error.headers
    return Problem(error.status_code, kind, details.get(error.status_code, error.detail), headers=headers)


def _allowed(request: Request) -> dict[str, str]:
    """Return an Allow header with all methods of the path (RFC 9110, 10.2.1).

    The router itself would name only those of the first route that fits.
    """
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    here = request.url.path
    fitting = [here] if here in paths else [path for path in paths if compile_path(path)[0].fullmatch(here)]
    methods = {method.upper() for path in fitting for method in paths[path]}
    return {"Allow": ", ".join(sorted(methods or {"GET"}))}  # the pages and their files are not in the document

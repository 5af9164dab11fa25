"""The body of a job's event as the event stream carries it, with a description of what each type of event says."""

from __future__ import annotations

import inspect
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue

from worker.jobs.event import EVENTS, EventData
from worker.jobs.kinds import KINDS
from worker.observe.redaction import redact_all


class _DocumentedAs:
    """An annotation that has the OpenAPI document describe a field by another type than the one it is parsed as."""

    def __init__(self, described: Any) -> None:
        self._schema = TypeAdapter(described).core_schema

    def __get_pydantic_json_schema__(self, _: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self._schema)


def _told_by(data: type) -> str:
    kinds = [kind.name for kind in KINDS if data in kind.events]
    return f" ({', '.join(kinds)})" if kinds else ""


def _described() -> str:
    types = (f"`{name}`{_told_by(data)}: {inspect.getdoc(data)}" for name, data in EVENTS.items())
    return "What happened; the kinds of jobs that tell of it stand in parentheses. " + " ".join(types)


class EventBody(BaseModel):
    """Something that happened in a job; also the `data` of the event stream. A number that is not finite is null."""

    id: str = Field(description="Ids order events; Last-Event-ID resumes after one", examples=["1732392000000-0"])
    type: str = Field(description=_described(), examples=["step"])
    at: datetime
    data: Annotated[dict[str, Any], AfterValidator(redact_all), _DocumentedAs(EventData | dict[str, Any])] = Field(
        description="What the event tells; the fields depend on its type", examples=[{"step": 20, "loss": 0.4}]
    )

"""What is made of the bodies of requests: the client's keyword arguments and the command's options."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from pydantic import BaseModel, Field

from service.bodies.options import Option, options_of
from service.client import generate


class Body(BaseModel):
    """A request."""

    count: Annotated[int, Interval(ge=2, le=9)] | None = Field(None, description="How many\nof them")
    size: Annotated[int, Interval(ge=1)] | str = 3
    name: str


def test_an_option_has_the_type_the_range_and_the_meaning_of_its_field() -> None:
    count, _, name = options_of(Body)

    assert count == Option("count", int, (), 2, 9, None, "How many of them")
    assert (name.kind, name.default, name.meaning) == (str, None, "")
    assert [one.name for one in options_of(Body, leave_out=("size",))] == ["count", "name"]


def test_the_client_s_options_are_those_of_the_requests() -> None:
    assert generate.FILE.read_text() == generate.text(), "run `make options`"

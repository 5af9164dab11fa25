"""The list of all kinds of events, and the kind that a shape means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from model.errors import ShapeError
from model.event_kinds.images import IMAGES
from model.event_kinds.kind import EventKind
from model.event_kinds.vectors import VECTORS

KINDS: tuple[EventKind, ...] = (IMAGES, VECTORS)

if TYPE_CHECKING:
    KindName = str
else:  # for pydantic, which checks names and lists them in the OpenAPI document
    KindName = Literal[tuple(kind.name for kind in KINDS)]


def kind_of(event_shape: Sequence[int]) -> EventKind:
    """Return the kind of events of shape `event_shape`. Raises ShapeError if there is none."""
    for kind in KINDS:
        if kind.recognises(event_shape):
            return kind
    known = " or ".join(f"{kind.name} {kind.layout}" for kind in KINDS)
    raise ShapeError(f"events have shape {tuple(event_shape)}; expected {known}")


def taken_by(network: str) -> str:
    """Return in words the kinds of events that the `network.kind` called `network` takes, such as "images"."""
    return " or ".join(kind.name for kind in KINDS if network in kind.networks)

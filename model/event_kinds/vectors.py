"""Vectors (D,), such as rows of a table or points of a plane."""

from __future__ import annotations

from model.event_kinds.kind import EventKind


class Vectors(EventKind):
    """Events that are rows of numbers, whose columns may have units of their own."""

    name = "vectors"
    axes = ("D",)
    networks = ("mlp",)
    preset = "density-2d"
    standardized_over = (0,)


VECTORS = Vectors()

"""Vectors (D,): rows of a table, points of a plane."""

from __future__ import annotations

from model.event_kinds.kind import EventKind


class Vectors(EventKind):
    """Rows of numbers, whose columns may have units of their own."""

    name = "vectors"
    axes = ("D",)
    networks = ("mlp",)
    preset = "density-2d"
    standardized_over = (0,)


VECTORS = Vectors()

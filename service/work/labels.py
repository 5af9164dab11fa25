"""The labels of a request, by names or numbers of a model's classes: read, or refused with the classes there are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from model.composition import ANY_LABEL, Composition
from model.errors import ConfigError
from service.bodies.fields import CompositionBody, WeightedLabelBody
from service.http.errors import field_problem

_SHOWN = 20
"""So many classes are named where one is not known."""
Asked = str | int | CompositionBody | None


def read_labels(
    labels: Sequence[Asked] | None, guidance: float | None, classes: Sequence[str], num_images: int
) -> tuple[Composition, ...]:
    """Return what is asked of the samples, which take it in turn; nothing for a model without classes. Raises Problem.

    Without `labels`, that is every class.
    """
    if not classes:
        for field, given in (("labels", labels), ("guidance", guidance)):
            if given is not None:
                raise field_problem(
                    ["body", field],
                    f"this model knows no classes, since it was not trained with `conditional`; leave {field} out",
                )
        return ()
    asked: Sequence[Asked] = range(len(classes)) if labels is None else labels
    if labels is not None and len(labels) > num_images:
        raise field_problem(
            ["body", "labels"],
            f"there are {len(labels)} labels for {num_images} samples; ask for more, or leave some out",
        )
    found = [_composition(one, classes, ["body", "labels", index]) for index, one in enumerate(asked)]
    return tuple(one if one == ANY_LABEL else replace(one, guidance=guidance or 0.0) for one in found)


def named(compositions: Collection[Composition], classes: Sequence[str]) -> list[Any]:
    """Return what is asked, in the names of the classes, as JSON."""
    return [one.named(classes) for one in compositions]


def _composition(asked: Asked, classes: Sequence[str], location: Sequence[str | int]) -> Composition:
    if asked is None:
        return ANY_LABEL
    if not isinstance(asked, CompositionBody):
        return Composition.of_label(_index(asked, classes, location))
    any_of = tuple(_index(label, classes, [*location, "any_of", at]) for at, label in enumerate(asked.any_of))
    weighted = [
        one if isinstance(one, WeightedLabelBody) else WeightedLabelBody(label=one, weight=1.0) for one in asked.all_of
    ]
    all_of = tuple(
        (_index(one.label, classes, [*location, "all_of", at, "label"]), one.weight) for at, one in enumerate(weighted)
    )
    try:
        found = Composition(any_of=any_of, all_of=all_of)
        found.require_possible(len(classes))
    except ConfigError as error:
        raise field_problem(location, str(error)) from None
    if found == ANY_LABEL:
        raise field_problem(location, "neither any_of nor all_of names a label; name some, or give null for any class")
    return found


def _index(label: str | int, classes: Sequence[str], location: Sequence[str | int]) -> int:
    """Return the index of a class that is named, or counted from 0.

    A name has precedence over a number in a text. Where all classes are named by numbers, a number is a name, too.
    """
    text, are_numbers = str(label), all(map(_is_number, classes))
    if text in classes and (are_numbers or isinstance(label, str)):
        return classes.index(text)
    number = int(label) if not are_numbers and (isinstance(label, int) or _is_number(label)) else -1
    if not 0 <= number < len(classes):
        shown = ", ".join(map(repr, classes[:_SHOWN])) + (
            f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
        )
        raise field_problem(location, f"{label!r} is no class of this model; there are {shown}")
    return number


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 5

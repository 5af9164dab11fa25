"""Whether chains that restore an item arrived at the posterior, as one word and as a sentence. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Arrival = Literal["arrived", "rejecting", "few_effective", "halves_apart", "not_told"]

ARRIVALS: Mapping[Arrival, str] = MappingProxyType(
    {
        "arrived": "Two halves of the chains agree, and enough of them count.",
        "rejecting": (
            "The chains rejected most of their steps and hardly moved: the spread of the answers is not the "
            "posterior's. Use more bridges, or more noise."
        ),
        "few_effective": (
            "Only a few of the chains bear all the weight: the evidence and the spread of the answers are not to be "
            "trusted. Use more chains, or the method posterior, which does not weigh them."
        ),
        "halves_apart": (
            "Two halves of the chains, walked apart, found different answers: the spread of the answers is not the "
            "posterior's. Use more chains or more bridges."
        ),
        "not_told": "This method climbs to one likely answer each time; its spread is not the posterior's.",
    }
)
"""What each word means, and what to do."""

FEWEST_EFFECTIVE = 5.0
LEAST_ACCEPTANCE = 0.2
LARGEST_DISAGREEMENT = 4.0
"""Of 60 walks with a known posterior, 11 came out wrong, at 6 and above; 48 of the 49 right ones were below."""


def arrival(*, acceptance_rate: float, effective_sample_size: float | None, disagreement: float) -> Arrival:
    """Judge chains by their acceptance, the number that counts, and the disagreement of their halves.

    `effective_sample_size` is None for chains that are not weighed. The `disagreement` is Fisher's ratio F of the
    halves' answers: near 1 is chance.
    """
    if not acceptance_rate >= LEAST_ACCEPTANCE:
        return "rejecting"
    if effective_sample_size is not None and not effective_sample_size >= FEWEST_EFFECTIVE:
        return "few_effective"
    return "arrived" if disagreement <= LARGEST_DISAGREEMENT else "halves_apart"

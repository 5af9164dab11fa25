"""What is asked of the label of a sample: one label, any of several, or several at once with weights. Imports no torch.

For a sample x of the marginal p(x), a composition multiplies its density by what the model's own classifier says:

    p(x) [Σ_{k ∈ any_of} p(k | x) · Π_{k ∈ all_of} p(k | x)^{v_k}]^(1 + w)

`any_of` is a mixture, "3 or 5". `all_of` is a product of experts (Hinton 2002; Du et al. 2020), "8 but not 0" with
v_8 = 1 and v_0 = −1. w is the guidance. One label k is the product of p(k | x) alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from model.errors import ConfigError

MAX_GUIDANCE = 100.0
"""The largest weight of guidance that is taken, and the largest size of the weight of a label."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """What is asked of the label of a sample. Without labels, the sample is one of the marginal, of any class."""

    any_of: tuple[int, ...] = ()
    """The classes of which the sample is to be of one; empty if it need not be."""
    all_of: tuple[tuple[int, float], ...] = ()
    """(class, weight v) of the classes that it is to be of at once; a negative weight leads away from a class."""
    guidance: float = 0.0
    """The weight w with which all of this is exaggerated."""

    @classmethod
    def of_label(cls, label: int, guidance: float = 0.0) -> Self:
        """Return what asks for one class."""
        return cls(all_of=((label, 1.0),), guidance=guidance)

    @property
    def is_product(self) -> bool:
        """Whether this is a product of several experts, whose densities at the noise levels are not one diffusion's.

        Chains that are not corrected by a Metropolis test do not draw from it (Du et al. 2023). One label is none, nor
        is a mixture, which diffuses to the mixture of the diffused classes.
        """
        factors = len(self.all_of) + bool(self.any_of)
        return factors > 1 or any(weight != 1 for _, weight in self.all_of)

    def named(self, classes: Sequence[str]) -> str | dict[str, Any] | None:
        """Return what is asked in the names of the classes, as JSON without the guidance; None stands for any class."""
        if not self.any_of and not self.is_product:
            return classes[self.all_of[0][0]] if self.all_of else None
        all_of = [{"label": classes[label], "weight": weight} for label, weight in self.all_of]
        found = {"any_of": [classes[label] for label in self.any_of], "all_of": all_of}
        return {name: value for name, value in found.items() if value}

    def require_possible(self, num_classes: int) -> None:
        """Raise ConfigError if a model of so many classes, 0 if it is not conditional, cannot draw such a sample."""
        labels = [*self.any_of, *(label for label, _ in self.all_of)]
        if labels and num_classes == 0:
            raise ConfigError(
                f"label is {labels[0]}, but this model was not trained with conditional; leave labels out"
            )
        for label in labels:
            if not 0 <= label < num_classes:
                raise ConfigError(f"label is {label}; expected a number from 0 to {num_classes - 1}")
        if len(set(labels)) < len(labels):
            raise ConfigError("a composition names a label twice; name it once, with one weight")
        for _, weight in self.all_of:
            if not abs(weight) <= MAX_GUIDANCE:
                raise ConfigError(
                    f"the weight of a label is {weight:g}; expected a number from {-MAX_GUIDANCE:g} to {MAX_GUIDANCE:g}"
                )
        if self.guidance != 0 and not labels:
            reason = "no label is asked for" if num_classes else "this model was not trained with conditional"
            raise ConfigError(f"guidance is {self.guidance:g}, but {reason}; leave guidance out")
        if not (math.isfinite(self.guidance) and 0 <= self.guidance <= MAX_GUIDANCE):
            raise ConfigError(f"guidance is {self.guidance:g}; expected a number from 0 to {MAX_GUIDANCE:g}")


ANY_LABEL = Composition()
"""Asks for no label."""


def in_turn(compositions: Sequence[Composition], index: int) -> Composition:
    """Return what is asked of sample `index`: the samples take the compositions one after another, again and again."""
    return compositions[index % len(compositions)] if compositions else ANY_LABEL

"""What an estimate of log Z tells, as one word and as a sentence. This module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Verdict = Literal["converged", "sides_apart", "not_known", "data_elsewhere"]

EXPLANATIONS: Mapping[Verdict, str] = MappingProxyType(
    {
        "converged": "log Z is known to within the tolerance.",
        "sides_apart": (
            "The two sides of log Z have not met within the tolerance, and all log densities share its error: "
            "calibrate with more max_bridges or max_chains."
        ),
        "not_known": (
            "The chains' weights are too unequal to tell the error of log Z, so that log densities serve for comparing "
            "items only: calibrate with more max_bridges and max_chains."
        ),
        "data_elsewhere": (
            "The data lie where the chains do not go: chains that start from data leave them or find another log Z, so "
            "that log densities serve for comparing items only. More bridges may help the chains; if not, the energies "
            "are wrong away from the data: train longer, or with a preset made for densities."
        ),
    }
)

"""Bringing spectral norms up to date, and fixing weights while a Markov chain runs.

Spectral norm (Miyato et al. 2018) divides a weight by an estimate of its largest singular value from one power
iteration. `frozen` fixes the normalised weights for the length of a chain, during which they cannot change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from model.config import Precision
from model.networks.blocks import EnergyNetwork
from model.networks.layers import Weighted


def iterate_power(network: nn.Module, num_iterations: int = 1) -> None:
    """Run power iterations for every spectral norm in `network`, in place.

    A training step takes one (DRL); more bring the singular vectors to convergence.
    """
    for module in network.modules():
        if isinstance(module, Weighted):
            module.iterate_power(num_iterations)


@contextlib.contextmanager
def frozen(network: nn.Module, precision: Precision | None = None) -> Iterator[None]:
    """Fix every weight and its spectral norm while a chain runs, so that gradients flow to positions only.

    The trunk computes in `precision`, or in the network's own precision if that is None. Inside another `frozen` of
    the same network, only the precision changes.
    """
    networks = [(m, m.precision) for m in network.modules() if isinstance(m, EnergyNetwork)]
    parameters = [p for p in network.parameters() if p.requires_grad]
    weighted = [m for m in network.modules() if isinstance(m, Weighted) and not m.is_frozen]
    for parameter in parameters:
        parameter.requires_grad_(False)
    for module in weighted:
        module.freeze()
    for one, own in networks:
        one.precision = precision or own
    try:
        yield
    finally:
        for one, own in networks:
            one.precision = own
        for module in weighted:
            module.unfreeze()
        for parameter in parameters:
            parameter.requires_grad_(True)

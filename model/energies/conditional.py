"""The conditional energy of a sample given its noisier neighbour.

Source: DRL (Gao et al. 2021) section 3.2. With y_t = α_{t+1} x_t,
p(y_t | x_{t+1}) ∝ exp(−E_t(y_t) − |x_{t+1} − y_t|²/(2σ_{t+1}²)); the tether is absent at the top level.
"""

from __future__ import annotations

from torch import Tensor

from model.energies.energy import EnergyFn


def squared_norm(x: Tensor) -> Tensor:
    """Return |x|² (B,) of every event of `x` (B, *event)."""
    return (x**2).flatten(1).sum(1)


def recovery_energy(energy_fn: EnergyFn, x_next: Tensor, tether_precision: Tensor) -> EnergyFn:
    """Return the function E(y | x_next) = E(y) + precision |x_next − y|²/2 of y.

    `tether_precision` (B,) is 1/σ_{t+1}², or 0 where there is no tether.
    """
    half_precision = tether_precision.to(x_next) / 2

    def conditional(y: Tensor) -> Tensor:
        return energy_fn(y) + half_precision * squared_norm(x_next - y)

    return conditional

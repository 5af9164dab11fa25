"""The networks by name, and how many threads one can keep busy. Which events they take, `model.event_kinds` says."""

from __future__ import annotations

import math
from collections.abc import Callable

from model.config import NetworkConfig
from model.errors import ShapeError
from model.event_kinds.registry import kind_of, taken_by
from model.networks.blocks import EnergyNetwork
from model.networks.mlp import MLPEnergy
from model.networks.resnet import ResNetEnergy

_NETWORKS: dict[str, Callable[[NetworkConfig, tuple[int, ...]], EnergyNetwork]] = {
    "resnet": ResNetEnergy,
    "mlp": MLPEnergy,
}
_ACTIVATIONS_PER_THREAD = 150_000


def make_network(config: NetworkConfig, event_shape: tuple[int, ...]) -> EnergyNetwork:
    """The network a configuration describes, randomly initialised from torch's global generator.

    Raises ShapeError when it does not take events of that kind.
    """
    kind = kind_of(event_shape)
    if config.kind not in kind.networks:
        raise ShapeError(
            f"network '{config.kind}' takes {taken_by(config.kind)}, but the data are {kind.name} of shape "
            f"{event_shape}; use '{kind.networks[0]}'"
        )
    return _NETWORKS[config.kind](config, event_shape)


def useful_threads(config: NetworkConfig, event_shape: tuple[int, ...], batch_size: int) -> int:
    """How many CPU threads a batch can keep busy; small layers run slower on several, and spoil them for neighbours.

    Measured on two cores: the digits preset trains 17 % (score matching) and 32 % (recovery) faster with the second
    thread alone on the machine, and at a tenth of its rate at times beside other busy processes.
    """
    positions = 1 if config.kind == "mlp" else math.prod(event_shape[1:])  # the others are convolutional
    return max(1, batch_size * positions * config.width // _ACTIVATIONS_PER_THREAD)

"""The networks by name, and the number of threads that one can keep busy.

`model.event_kinds` says which kinds of events each network takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from model.config import NetworkConfig
from model.errors import ShapeError
from model.event_kinds.registry import kind_of, taken_by
from model.networks.blocks import EnergyNetwork
from model.networks.mlp import MLPEnergy
from model.networks.resnet import ResNetEnergy
from model.networks.unet import UNetEnergy

_NETWORKS: dict[str, Callable[[NetworkConfig, tuple[int, ...], int], EnergyNetwork]] = {
    "resnet": ResNetEnergy,
    "unet": UNetEnergy,
    "mlp": MLPEnergy,
}
_ACTIVATIONS_PER_THREAD = 150_000


def make_network(config: NetworkConfig, event_shape: tuple[int, ...], num_classes: int = 0) -> EnergyNetwork:
    """Make the network that `config` describes, randomly initialised from torch's global generator.

    It has an output for each of `num_classes` classes, or one where that is 0.
    Raises ShapeError if the network does not take events of shape `event_shape`.
    """
    kind = kind_of(event_shape)
    if config.kind not in kind.networks:
        raise ShapeError(
            f"network '{config.kind}' takes {taken_by(config.kind)}, but the data are {kind.name} of shape "
            f"{event_shape}; use '{kind.networks[0]}'"
        )
    return _NETWORKS[config.kind](config, event_shape, num_classes)


def useful_threads(config: NetworkConfig, event_shape: tuple[int, ...], batch_size: int) -> int:
    """Return how many CPU threads a batch can keep busy.

    Small layers run slower on several threads, and take the cores away from other processes. Measured on two cores: a
    second thread makes the digits preset train 17 % (score matching) and 32 % (recovery) faster alone on the machine,
    and at times at a tenth of its rate beside other busy processes.
    """
    positions = 1 if config.kind == "mlp" else math.prod(event_shape[1:])  # other networks are convolutional
    return max(1, batch_size * positions * config.width // _ACTIVATIONS_PER_THREAD)
